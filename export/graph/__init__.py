"""From a network to an ONNX file, and to the precision asked for: tracing, inlining, float16, int8."""
