"""One training step and one prediction as pure TensorFlow functions, XLA-compilable and exportable."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from ._keras import keras, tf
from .augmentation import augment, to_float
from .recipe import Recipe

__all__ = ["Step", "make_step"]


@dataclass(frozen=True)
class Step:
    """What trains one model under one recipe.

    Args:
        train: (images uint8 (batch, height, width, channels), labels int32 (batch,), learning_rate float32 (),
            seed int32 (2,)) -> (loss float32 (), accuracy float32 ()); updates the variables. The batch is a replica's
            own share and its shape is static. Not a tf.function: callers compile it as they need.
        predict: images uint8 (batch, height, width, channels) -> class ids int32 (batch,), inference mode.
        variables: every variable the two functions read or write, optimizer included, in a fixed order.
        optimizer: the optimizer whose state is among the variables.
    """

    train: Callable
    predict: Callable
    variables: tuple[tf.Variable, ...]
    optimizer: keras.optimizers.Optimizer


def make_step(model: keras.Model, recipe: Recipe) -> Step:
    """The training step of a model; call it in the strategy's scope where there is one."""
    optimizer = keras.optimizers.SGD(0.0, momentum=recipe.momentum, nesterov=recipe.momentum > 0, jit_compile=False)
    trainable = model.trainable_variables
    optimizer.build(trainable)
    decayed = [v.name.rsplit("/", 1)[-1].startswith(("kernel", "depthwise_kernel")) for v in trainable]
    classes = model.output_shape[-1]

    def train(images, labels, learning_rate, seed):
        context = tf.distribute.get_replica_context()
        share = 1 / context.num_replicas_in_sync
        # Replicas see other crops: fold the replica's number into the seed.
        seed = tf.random.experimental.stateless_fold_in(seed, context.replica_id_in_sync_group)
        inputs = augment(images, seed, recipe)
        off = recipe.label_smoothing / classes
        targets = tf.one_hot(labels, classes, on_value=1 - recipe.label_smoothing + off, off_value=off)
        with tf.GradientTape() as tape:
            logits = model(inputs, training=True)
            loss = tf.reduce_mean(tf.nn.softmax_cross_entropy_with_logits(targets, logits))
            scaled = loss * share
        gradients = tape.gradient(scaled, trainable)
        # The optimizer sums over replicas, so each adds its share of the decay.
        gradients = [
            g + share * recipe.weight_decay * v if is_decayed else g
            for g, v, is_decayed in zip(gradients, trainable, decayed)
        ]
        optimizer.learning_rate.assign(learning_rate)
        optimizer.apply_gradients(zip(gradients, trainable))
        accuracy = tf.reduce_mean(tf.cast(tf.argmax(logits, -1, tf.int32) == labels, tf.float32))
        return loss, accuracy

    def predict(images):
        return tf.argmax(model(to_float(images), training=False), -1, tf.int32)

    return Step(train, predict, (*model.variables, *optimizer.variables, optimizer.learning_rate), optimizer)
