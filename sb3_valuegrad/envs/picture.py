"""A vehicle and its path from above, a cart and its pole from the side, without a graphics library."""

import numpy as np

from sb3_valuegrad.envs.vehicle import path

HEIGHT, WIDTH, PIXELS_PER_METRE = 240, 640, 8
LENGTH, BREADTH, PATH_BREADTH = 4.6, 1.8, 0.4  # m
GRASS, ROAD, PATH, VEHICLE, WINDSCREEN = (196, 214, 180), (120, 120, 124), (245, 240, 220), (190, 40, 40), (40, 44, 60)
ROAD_BREADTH = 6.0  # 3 m to either side, where a vehicle is taken back
PIXELS_PER_METRE_OF_RAIL = 96
WALL, RAIL, CART, POLE = (236, 236, 230), (120, 120, 124), (40, 44, 60), (190, 40, 40)
CART_LENGTH, CART_HEIGHT, POLE_BREADTH, RAIL_BREADTH = 0.4, 0.2, 0.06, 0.03  # m


def draw_vehicle(y: float, phi: float, x: float) -> np.ndarray:
    """The surroundings of a vehicle, which drives to the right: (240, 640, 3), uint8.

    :param y: of the vehicle, m
    :param phi: its yaw angle, rad
    :param x: m
    """
    # Places of the pixels; the vehicle is a quarter of the width from the left, and up is positive.
    xs = x + (np.arange(WIDTH) - WIDTH / 4) / PIXELS_PER_METRE
    ys = y + (HEIGHT / 2 - np.arange(HEIGHT)) / PIXELS_PER_METRE
    picture = np.empty((HEIGHT, WIDTH, 3), dtype=np.uint8)
    picture[:] = GRASS
    y_ref, phi_ref = path(xs)
    distance = np.abs(ys[:, None] - y_ref) * np.cos(phi_ref)
    picture[distance < ROAD_BREADTH / 2] = ROAD
    picture[distance < PATH_BREADTH / 2] = PATH
    # In the vehicle's own axes.
    east, north = xs - x, ys[:, None] - y
    ahead = east * np.cos(phi) + north * np.sin(phi)
    left = north * np.cos(phi) - east * np.sin(phi)
    body = (np.abs(ahead) < LENGTH / 2) & (np.abs(left) < BREADTH / 2)
    picture[body] = VEHICLE
    picture[body & (ahead > 0.5) & (ahead < 1.3)] = WINDSCREEN
    return picture


def draw_cart_pole(x: float, theta: float, length: float, rail: float) -> np.ndarray:
    """The whole rail, its middle in the middle: (240, 640, 3), uint8.

    :param x: of the cart, m
    :param theta: of the pole from upright, rad
    :param length: of the pole, m
    :param rail: half the rail's length, m
    """
    xs = (np.arange(WIDTH) - WIDTH / 2) / PIXELS_PER_METRE_OF_RAIL
    ys = (HEIGHT / 2 - np.arange(HEIGHT))[:, None] / PIXELS_PER_METRE_OF_RAIL
    picture = np.empty((HEIGHT, WIDTH, 3), dtype=np.uint8)
    picture[:] = WALL
    picture[(np.abs(xs) < rail) & (np.abs(ys) < RAIL_BREADTH / 2)] = RAIL
    picture[(np.abs(xs - x) < CART_LENGTH / 2) & (np.abs(ys) < CART_HEIGHT / 2)] = CART
    # In the pole's own axes.
    along = (xs - x) * np.sin(theta) + ys * np.cos(theta)
    across = (xs - x) * np.cos(theta) - ys * np.sin(theta)
    picture[(along > 0) & (along < length) & (np.abs(across) < POLE_BREADTH / 2)] = POLE
    return picture
