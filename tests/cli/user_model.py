"""A model as a user of the commands may have one."""

import tf_keras as keras


def small_net(*layers, shape=(8, 8, 1), classes=10, activation=None):
    body = [keras.layers.Conv2D(8, 3, strides=2, padding="same"), keras.layers.BatchNormalization()]
    head = [keras.layers.GlobalAveragePooling2D(), keras.layers.Dense(classes, activation=activation)]
    return keras.Sequential([keras.Input(shape), *body, keras.layers.ReLU(), *layers, *head], name="mine")
