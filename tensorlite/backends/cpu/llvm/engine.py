"""Machine code from LLVM IR, kept for the life of the process."""

from __future__ import annotations

import ctypes
import ctypes.util
import functools
import warnings
from typing import Any

from .. import openmp


@functools.cache
def available() -> bool:
    """Whether nests can be compiled here: llvmlite and GNU's OpenMP runtime are there. Warns once
    if not."""
    try:
        _binding()
        _openmp()
    except (ImportError, OSError) as error:
        warnings.warn(
            f"fused loops are not compiled, and run through NumPy instead: {error}",
            RuntimeWarning,
            stacklevel=2,
        )
        return False
    return True


@functools.cache
def _openmp() -> ctypes.CDLL:
    """The OpenMP runtime that oneDNN uses too, so that there is one pool of threads."""
    errors = []
    for name in ("libgomp.so.1", ctypes.util.find_library("gomp")):
        if name is None:
            continue
        try:
            library = ctypes.CDLL(name)
        except OSError as error:
            errors.append(str(error))
        else:
            openmp.register(library)
            return library
    raise OSError(f"libgomp is not found ({'; '.join(errors)}); install your system's libgomp1")


@functools.cache
def _binding() -> Any:
    from llvmlite import binding

    binding.initialize_native_target()
    binding.initialize_native_asmprinter()
    return binding


def _version() -> str:
    import llvmlite

    return llvmlite.__version__


class _Machine:
    """The processor that code is made for, and the engine that holds the code."""

    def __init__(self) -> None:
        binding = _binding()
        self.version = f"llvmlite {_version()}"
        self.cpu = binding.get_host_cpu_name()
        features = binding.get_host_cpu_features()
        self.features = features.flatten()
        self.avx512 = bool(features.get("avx512f"))
        self.float16 = bool(features.get("f16c")) or "x86" not in binding.get_default_triple()
        self.register_bytes = 64 if self.avx512 else 32 if features.get("avx") else 16
        target = binding.Target.from_default_triple()
        self.triple = target.triple
        self.target = target.create_target_machine(
            cpu=self.cpu, features=self.features, opt=2, codemodel="jitdefault", jit=True
        )
        self.layout = str(self.target.target_data)
        empty = binding.parse_assembly(f'target triple = "{self.triple}"')
        self.engine = binding.create_mcjit_compiler(empty, self._engine_target(binding, target))
        runtime = _openmp()
        for name in ("GOMP_parallel", "omp_get_thread_num", "omp_get_num_threads"):
            address = ctypes.cast(getattr(runtime, name), ctypes.c_void_p).value
            binding.add_symbol(name, address)

    def _engine_target(self, binding: Any, target: Any) -> Any:
        # An engine owns its target machine.
        return target.create_target_machine(
            cpu=self.cpu, features=self.features, opt=2, codemodel="jitdefault", jit=True
        )

    @property
    def description(self) -> str:
        """What machine code depends on beside the IR."""
        return f"{self.version} {self.triple} {self.cpu} {self.features}"

    def compile(self, text: str) -> bytes:
        """An object file of optimized code."""
        binding = _binding()
        module = binding.parse_assembly(text)
        module.triple = self.triple
        module.data_layout = self.layout
        tuning = binding.create_pipeline_tuning_options(speed_level=2)
        builder = binding.create_pass_builder(self.target, tuning)
        passes = binding.create_new_module_pass_manager()
        passes.add_sroa_pass()
        passes.add_instruction_combine_pass()
        passes.add_simplify_cfg_pass()
        passes.run(module, builder)
        return self.target.emit_object(module)

    def load(self, code: bytes) -> None:
        """Make the functions of an object file callable."""
        binding = _binding()
        self.engine.add_object_file(binding.ObjectFileRef.from_data(code))
        self.engine.finalize_object()

    def address(self, name: str) -> int:
        """Where a function is that was loaded.

        Raises:
            KeyError: there is none of that name.
        """
        address = self.engine.get_function_address(name)
        if not address:
            raise KeyError(f"no function {name!r} was compiled")
        return int(address)


@functools.cache
def machine() -> _Machine:
    """The machine of this process."""
    return _Machine()
