"""A scikit-learn pipeline with a scaler and a perceptron, converted by skl2onnx and squeezed."""

import numpy as np
import onnxruntime
from skl2onnx import to_onnx
from sklearn.datasets import load_digits
from sklearn.neural_network import MLPClassifier
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

import onnxsqueeze

digits = load_digits()
images = digits.data.astype(np.float32)
model = make_pipeline(StandardScaler(), MLPClassifier((256, 256), max_iter=30, random_state=0))
model.fit(images[:1200], digits.target[:1200])
exported = to_onnx(model, images[:1], options={"zipmap": False})

result = onnxsqueeze.squeeze(exported, "int8", images[:1200])
session = onnxruntime.InferenceSession(result.model.SerializeToString(), providers=["CPUExecutionProvider"])
found = session.run(None, {session.get_inputs()[0].name: images[1200:]})[0]
before, after = model.score(images[1200:], digits.target[1200:]), float((found == digits.target[1200:]).mean())
report = result.report
print(f"accuracy {before:.1%} -> {after:.1%}, {report.before.bytes} -> {report.after.bytes} bytes")
assert after > before - 0.02
assert report.after.bytes < 0.4 * report.before.bytes
