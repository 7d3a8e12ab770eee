"""A Keras 3 model, exported by tf2onnx with channels last and an open batch, and squeezed."""

import numpy as np
import onnxruntime
import tensorflow as tf
import tf2onnx

import onnxsqueeze

keras = tf.keras
keras.utils.set_random_seed(0)
rng = np.random.default_rng(0)
templates = rng.normal(size=(10, 16, 16, 1))


def images(count: int) -> tuple[np.ndarray, np.ndarray]:
    labels = rng.integers(10, size=count)
    return (templates[labels] + 0.7 * rng.normal(size=(count, 16, 16, 1))).astype(np.float32), labels


model = keras.Sequential([
    keras.layers.Input((16, 16, 1)),
    keras.layers.Conv2D(32, 3, padding="same", activation="relu"),
    keras.layers.MaxPooling2D(),
    keras.layers.Conv2D(64, 3, padding="same", activation="relu"),
    keras.layers.GlobalAveragePooling2D(),
    keras.layers.Dense(10),
])  # fmt: skip
model.compile("adam", keras.losses.SparseCategoricalCrossentropy(from_logits=True))
model.fit(*images(4000), epochs=5, verbose=0)

signature = [tf.TensorSpec((None, 16, 16, 1), tf.float32, "image")]
function = tf.function(lambda image: model(image), input_signature=signature)
exported, _ = tf2onnx.convert.from_function(function, signature, opset=17)
result = onnxsqueeze.squeeze(exported, "int8", images(128)[0])

test, labels = images(1000)
session = onnxruntime.InferenceSession(result.model.SerializeToString(), providers=["CPUExecutionProvider"])
found = session.run(None, {"image": test})[0].argmax(1)
before, after = (model.predict(test, verbose=0).argmax(1) == labels).mean(), (found == labels).mean()
report = result.report
print(f"accuracy {before:.1%} -> {after:.1%}, {report.before.bytes} -> {report.after.bytes} bytes")
assert after > before - 0.02
assert report.after.bytes < 0.5 * report.before.bytes
