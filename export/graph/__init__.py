"""From a network to an ONNX file, and to the precision asked for; each file knows only those named before it.

- `inlining`: msmamba's functions written out, without PyTorch.
- `onnx_model`: PyTorch to ONNX, and the flat model that all below take.
- `precision`: the flat model in float16.

The way to int8 goes on from there:

- `products`: what int8 can hold.
- `plan`: which of it is quantised.
- `quantise`: those products as Q/DQ pairs in the graph, and the proof read off it.
- `judging`: what a quantised network answers beside the float32 one, and what it must.
- `sensitivity`: the harm by part, and the plan that follows from it.
- `int8_options`: what is asked, and on which images.
- `int8`: all of it, step by step.
"""
