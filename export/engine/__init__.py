"""From an ONNX file to a TensorRT engine, with the scan as a plugin."""
