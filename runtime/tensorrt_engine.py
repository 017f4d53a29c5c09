"""The TensorRT calls of running an engine, all of them: deserialise, bind, enqueue.

One source for ``tensorrt`` from 10.0 on and for ``tensorrt_rtx``. TensorRT does not raise: it returns None or
False and logs, so each answer is looked at and the log's errors become the message. The caller has a CUDA
context current.
"""

from __future__ import annotations

from types import ModuleType
from typing import Any

from ..errors import ArtefactError, BackendError
from ..plugins.selective_scan import tensorrt_plugin
from ..plugins.tensorrt_library import collecting_logger
from .backend import FEATURES

MOST_CONTEXTS = 4
"""Batch sizes that get an execution context of their own; each takes memory for the largest batch."""


class LoadedEngine:
    """An engine on the current context's GPU; owned until `close`.

    The first few batch sizes have an execution context each, since NVIDIA advises one CUDA graph a context;
    further ones share another.

    Attributes:
        input: name of the input, (batch, 3, S, S) float32.
        output: name of the output, (batch, classes) float32.
        image_size: S, pixels.
        classes: number of logits.
        features: number of features, the second output (batch, features) float32; None where it has none.
        batches: least and largest batch of the engine's profile.
        memory_bytes: GPU memory that the execution context takes.
    """

    def __init__(self, trt: ModuleType, plan: bytes, name: str, *, trusts_host_code: bool = False) -> None:
        """Deserialises an engine that fits this machine (`engine_plan`); `start` must follow.

        Args:
            trt: the library.
            plan: the engine.
            name: what messages call the artefact.
            trusts_host_code: lets a version-compatible engine run the library that it carries.

        Raises:
            ArtefactError: the engine is damaged, or is no image classifier.
            BackendError: TensorRT cannot load it.
        """
        self._trt, self._name = trt, name
        self._rtx = trt.__name__ == "tensorrt_rtx"
        self._context: Any = None  # the context of the batch that was set
        self._contexts: dict[int, Any] = {}
        self._spare: Any = None
        self._addresses: dict[str, int] = {}
        self._config: Any = None
        self._cache: Any = None
        self._engine: Any = None
        tensorrt_plugin.register(trt)
        tensorrt_plugin.take_refusals()
        self._logger = collecting_logger(trt)
        self._runtime = trt.Runtime(self._logger)
        try:
            if trusts_host_code:
                self._runtime.engine_host_code_allowed = True
            self._engine = self._runtime.deserialize_cuda_engine(plan)
            if self._engine is None:
                raise BackendError(self._said("does not load"))
            self._read_interface()
        except BaseException:  # the error's traceback would keep the engine beyond its CUDA context
            self.close()
            raise
        memory = getattr(self._engine, "device_memory_size_v2", None)  # from TensorRT 10.1 on
        self.memory_bytes: int = self._engine.device_memory_size if memory is None else memory

    def start(self, runtime_cache: bytes | None = None) -> None:
        """Creates the execution context, which takes the GPU memory.

        Args:
            runtime_cache: what `runtime_cache` returned earlier, on this machine; one of another GPU, driver
                or version is left aside by TensorRT-RTX itself.

        Raises:
            BackendError: TensorRT cannot create it, for want of memory most likely.
        """
        if self._rtx:
            self._config = self._engine.create_runtime_config()
            # Kept here: TensorRT-RTX crashes when the cache goes while the configuration points at it.
            self._cache = self._config.create_runtime_cache()
            if runtime_cache is not None:
                self._cache.deserialize(runtime_cache)
            self._config.set_runtime_cache(self._cache)
            # A CUDA graph keeps the kernels it was captured with: not the ones that stand in until the
            # batch's own are compiled.
            strategy = self._trt.DynamicShapesKernelSpecializationStrategy.EAGER
            self._config.dynamic_shapes_kernel_specialization_strategy = strategy
        self._spare = self._new_context()

    def _new_context(self) -> Any:
        of = () if self._config is None else (self._config,)
        context = self._engine.create_execution_context(*of)
        if context is None:
            raise BackendError(self._said("cannot start"))
        self._bind(context)
        return context

    def bind(self, image: int, logits: int, features: int | None) -> None:
        """Tells where the input and the outputs lie; they must stay there.

        Raises:
            BackendError: TensorRT refuses the addresses.
        """
        self._addresses = {self.input: image, self.output: logits}
        if features is not None:
            self._addresses[FEATURES] = features
        self._bind(self._spare)

    def _bind(self, context: Any) -> None:
        for tensor, address in self._addresses.items():
            if not context.set_tensor_address(tensor, address):
                raise BackendError(self._said(f"does not take memory for '{tensor}'"))

    def set_batch(self, batch: int) -> None:
        """Sets the number of images of the next `enqueue`.

        Raises:
            BackendError: it is outside the engine's profile, or there is no memory for its context.
        """
        context = self._contexts.get(batch)
        if context is None:
            context = self._spare or self._new_context()
            self._spare = context
            if len(self._contexts) < MOST_CONTEXTS:
                self._contexts[batch], self._spare = context, None
        self._context = context
        size = self.image_size
        if not self._context.set_input_shape(self.input, (batch, 3, size, size)):
            raise BackendError(self._said(f"does not take a batch of {batch}"))

    def enqueue(self, stream: int) -> None:
        """Enqueues the network on a stream, reading and writing the bound memory.

        Raises:
            BackendError: TensorRT or the scan's plugin failed.
        """
        if not self._context.execute_async_v3(stream):
            raise BackendError(self._said("failed"))

    @property
    def has_own_context(self) -> bool:
        """Whether no other batch size uses the context of the one that was set."""
        return self._context is not self._spare

    def is_capturable(self, stream: int) -> bool:
        """Whether `enqueue` may be captured in a CUDA graph; TensorRT cannot be asked, and shows it."""
        return not self._rtx or bool(self._context.is_stream_capturable(stream))

    def runtime_cache(self) -> bytes | None:
        """TensorRT-RTX's compiled kernels, for a later `start`; None where it has none, as TensorRT."""
        content = None if self._cache is None else self._cache.serialize()
        return None if content is None else bytes(content)

    def close(self) -> None:
        """Frees everything, in the order in which one part uses the other."""
        self._context = self._spare = None
        self._contexts.clear()
        self._config = None
        self._cache = None
        self._engine = None
        self._runtime = None

    def _read_interface(self) -> None:
        trt, engine = self._trt, self._engine
        names = [engine.get_tensor_name(i) for i in range(engine.num_io_tensors)]
        inputs = [name for name in names if engine.get_tensor_mode(name) == trt.TensorIOMode.INPUT]
        outputs = [name for name in names if name not in inputs]
        if len(inputs) != 1 or len(outputs) != 1 + (FEATURES in outputs[1:]):
            raise ArtefactError(
                f"'{self._name}' has {len(inputs)} inputs and {len(outputs)} outputs: expected an image "
                f"classifier with one of each, or with '{FEATURES}' as a second output"
            )
        (self.input,), (self.output, *more) = inputs, outputs
        image, logits = (tuple(engine.get_tensor_shape(name)) for name in (self.input, self.output))
        features = tuple(engine.get_tensor_shape(FEATURES)) if more else None
        problems = [
            f"'{name}' is {engine.get_tensor_dtype(name).name}, expected FLOAT"
            for name in names
            if engine.get_tensor_dtype(name) != trt.DataType.FLOAT
        ]
        if len(image) != 4 or image[1] != 3 or image[2] != image[3] or image[2] < 1:
            problems.append(f"'{self.input}' has shape {image}, expected (batch, 3, S, S)")
        if len(logits) != 2 or logits[1] < 2:
            problems.append(
                f"'{self.output}' has shape {logits}, expected (batch, classes) and at least two classes"
            )
        if features is not None and (len(features) != 2 or features[1] < 1):
            problems.append(f"'{FEATURES}' has shape {features}, expected (batch, features)")
        if problems:
            raise ArtefactError(
                f"'{self._name}' is no image classifier that msmamba can run: {'; '.join(problems)}"
            )
        self.image_size, self.classes = int(image[2]), int(logits[1])
        self.features = int(features[1]) if features is not None else None
        least, _, largest = (tuple(dims) for dims in engine.get_tensor_profile_shape(self.input, 0))
        self.batches = (int(least[0]), int(largest[0]))

    def _said(self, what: str) -> str:
        """A failure with the reason that the plugin or the log gives, once."""
        reasons = tensorrt_plugin.take_refusals() or self._logger.errors[-2:]
        self._logger.errors.clear()
        said = "; ".join(dict.fromkeys(" ".join(reason.split()) for reason in reasons)) or "no reason given"
        return f"'{self._name}' {what} in {self._trt.__name__} {self._trt.__version__}: {said}"
