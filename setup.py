# SPDX-License-Identifier: Apache-2.0
"""The compiled engines; pyproject.toml declares everything else.

csrc/*/cpu/engine.cpp are compiled once for each instruction set of the processor's family, csrc/library.cpp once, and
all are linked into optlayer/_native.abi3.so, which needs torch but no particular Python.  Where that cannot be done (no
compiler, no torch, another system) the package is installed without it and runs on its reference engine.

    OPTLAYER_REQUIRE_NATIVE=1   stop instead
    OPTLAYER_NATIVE=0           do not even try
    OPTLAYER_SETS=avx2,...      only these instruction sets: quicker while the kernels are being written
    OPTLAYER_SANITIZE=1         with the address and undefined-behaviour sanitizers, slow
    CXX, CXXFLAGS, LDFLAGS      as everywhere

The engine for CUDA, csrc/*/cuda, becomes a library of its own, optlayer/_cuda.abi3.so, where there is an nvcc and the
torch that is installed has CUDA.

    OPTLAYER_CUDA=1             also for a torch without CUDA; stop if it cannot be done
    OPTLAYER_CUDA=0             do not even try
    OPTLAYER_CUDA_ARCHS=80,90   for these architectures; "all" is what this nvcc knows of 75 to 120, and without it, the
                                GPUs of this machine, or all where it has none. The newest is also kept as PTX.
    CUDACXX, NVCCFLAGS          the compiler and more options for it
"""

import os
import platform
import re
import shlex
import shutil
import subprocess
import sys
import sysconfig
from concurrent.futures import ThreadPoolExecutor
from importlib.util import find_spec
from pathlib import Path

from setuptools import Extension, setup
from setuptools.command.build_ext import build_ext

ROOT = Path(__file__).resolve().parent
LIBRARY = "csrc/library.cpp"
ENGINES = {"engine": "csrc/qp/cpu/engine.cpp", "entropic": "csrc/entropic/cpu/engine.cpp"}
TARGET = "0x020a000000000000"  # the oldest torch whose stable ABI suffices: 2.10
X86 = {
    "avx512": ["-mavx512f", "-mavx512dq", "-mavx512vl", "-mavx2", "-mfma"],
    "avx2": ["-mavx2", "-mfma"],
    "baseline": ["-msse4.2"],  # every x86-64 processor since 2009
}
INSTRUCTION_SETS = {"x86_64": X86, "AMD64": X86, "aarch64": {"neon": []}, "arm64": {"neon": []}}
FLAGS = ["-std=c++17", "-fPIC", "-fvisibility=hidden", "-Wall", "-Wextra"]
# No -ffast-math: comparisons with NaN must be what they are.
FAST = ["-O3", "-DNDEBUG", "-fno-math-errno", "-fno-trapping-math", "-ffp-contract=fast"]
CUDA = Path("csrc", "qp", "cuda")
CUDA_ENGINES = {"engine": CUDA / "engine.cu", "entropic": Path("csrc", "entropic", "cuda", "engine.cu")}
CUDA_FLAGS = ["-std=c++17", "-O3", "-DNDEBUG", "--expt-relaxed-constexpr", "-diag-suppress", "128", "-Xptxas", "-v"]
CUDA_FLAGS += ["-Xcompiler", "-fPIC,-fvisibility=hidden,-Wall,-Wextra"]
ARCHITECTURES = ("75", "80", "90", "100", "120")  # code for 80 also runs on 86 and 89
SANITIZED = ["-O1", "-g", "-fsanitize=address,undefined", "-fno-sanitize-recover=undefined", "-DOPTLAYER_POISON"]


BUILDING = {"build", "build_ext", "bdist_wheel", "editable_wheel", "develop", "install"}


def compiler() -> list[str]:
    return shlex.split(os.environ.get("CXX") or sysconfig.get_config_var("CXX") or "c++")


def obstacle() -> str | None:
    """Why the engine cannot be compiled, if so."""
    if os.environ.get("OPTLAYER_NATIVE") == "0":
        return "OPTLAYER_NATIVE is 0"
    if sys.platform not in ("linux", "darwin"):
        return f"there is none for {sys.platform}"
    if shutil.which(compiler()[0]) is None:
        return f"there is no C++ compiler {compiler()[0]}"
    if find_spec("torch") is None:
        return "torch is not installed where this is built (pip install --no-build-isolation uses the one that is)"
    return None


def cuda_obstacle() -> str | None:
    """Why the engine for CUDA is not compiled, if so."""
    wanted = os.environ.get("OPTLAYER_CUDA", "")
    if wanted == "0":
        return "OPTLAYER_CUDA is 0"
    if sys.platform != "linux":
        return f"there is none for {sys.platform}"
    if shutil.which(nvcc()[0]) is None:
        return f"there is no CUDA compiler {nvcc()[0]}"
    version = (torch_folder() / "version.py").read_text()
    if wanted != "1" and re.search(r"^cuda\b.*=\s*None", version, re.M):
        return "the torch that is installed has no CUDA"
    return None


def nvcc() -> list[str]:
    folders = [os.environ[name] for name in ("CUDA_HOME", "CUDA_PATH") if os.environ.get(name)]
    found = [str(path) for path in (Path(folder) / "bin" / "nvcc" for folder in folders) if path.exists()]
    return shlex.split(os.environ.get("CUDACXX") or [*found, "nvcc"][0])


def torch_folder() -> Path:
    return Path(find_spec("torch").origin).parent


def output_of(command: list[str]) -> str:
    try:
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout
    except (OSError, subprocess.CalledProcessError):
        return ""


def architectures() -> list[str]:
    """The architectures to compile for, the newest last."""
    wanted = os.environ.get("OPTLAYER_CUDA_ARCHS", "")
    known = re.findall(r"sm_(\d+)\b", output_of([*nvcc(), "--list-gpu-code"])) or list(ARCHITECTURES)
    names = [] if wanted == "all" else re.findall(r"\d+", wanted)
    if not wanted:
        present = output_of(["nvidia-smi", "--query-gpu=compute_cap", "--format=csv,noheader"]).replace(".", "").split()
        names = [name for name in present if name in known]
    return sorted(set(names) or {name for name in ARCHITECTURES if name in known}, key=int)


def teams() -> list[str]:
    """The numbers of threads that may work on one problem."""
    (numbers,) = re.findall(r"int TEAMS\[\] = {(.*)};", (ROOT / CUDA / "mapping.h").read_text())
    return numbers.split(", ")


def give_up(reason: str) -> None:
    if os.environ.get("OPTLAYER_REQUIRE_NATIVE") == "1":
        raise SystemExit(f"optlayer: the compiled engine was not built: {reason}")
    sys.stderr.write(f"optlayer: the compiled engine was not built: {reason}; the reference engine will run\n")


class Build(build_ext):
    """Compiles all parts at once, and only those that changed since the last time."""

    def build_extension(self, extension: Extension) -> None:
        target = Path(self.get_ext_fullpath(extension.name))
        cuda = extension.name == "optlayer._cuda"
        try:
            (self.build_cuda if cuda else self.build)(target)
        except OSError as error:
            target.unlink(missing_ok=True)
            if not cuda:
                give_up(str(error))
            elif os.environ.get("OPTLAYER_CUDA") == "1":
                raise SystemExit(f"optlayer: the engine for CUDA was not built: {error}") from None
            else:
                sys.stderr.write(f"optlayer: the engine for CUDA was not built: {error}\n")

    def copy_extensions_to_source(self) -> None:
        build_py = self.get_finalized_command("build_py")
        for old in (ROOT / "optlayer").glob("_cuda*.so"):  # its operators may not be those of today
            if "optlayer._cuda" not in self.ext_map:
                old.unlink()
        for extension in self.extensions:
            inplace, built = self._get_inplace_equivalent(build_py, extension)
            if os.path.exists(built):
                shutil.copy2(built, inplace + ".new")
                os.replace(inplace + ".new", inplace)  # a process that has the old one mapped keeps it
            else:
                Path(inplace).unlink(missing_ok=True)

    def build(self, target: Path) -> None:
        torch = torch_folder()
        sanitize = os.environ.get("OPTLAYER_SANITIZE") == "1"
        folder = ROOT / "build" / ("sanitized" if sanitize else "native")
        flags = [*FLAGS, *(SANITIZED if sanitize else FAST), *shlex.split(os.environ.get("CXXFLAGS", ""))]
        sets = INSTRUCTION_SETS.get(platform.machine(), {"baseline": []})
        if os.environ.get("OPTLAYER_SETS"):
            sets = {name: sets[name] for name in os.environ["OPTLAYER_SETS"].split(",")}
        own = [f"-DTORCH_TARGET_VERSION={TARGET}", "-isystem", str(torch / "include")]
        own += [f"-DOPTLAYER_HAS_{name.upper()}" for name in sets]
        parts = {
            f"{kind}_{name}.o": [f"-DOPTLAYER_ISA={name}", *options, source]
            for kind, source in ENGINES.items()
            for name, options in sets.items()
        }
        parts["library.o"] = [*own, LIBRARY]
        objects = compile_all([*compiler(), *flags, "-MMD"], parts, folder)
        link = [*compiler(), *flags, "-shared", *objects, f"-L{torch / 'lib'}", "-ltorch_cpu", "-lc10"]
        if sys.platform == "linux" and not sanitize:
            link.append("-Wl,-z,defs")
        target.parent.mkdir(parents=True, exist_ok=True)
        make(target, [*link, *shlex.split(os.environ.get("LDFLAGS", ""))], folder)

    def build_cuda(self, target: Path) -> None:
        torch = torch_folder()
        folder = ROOT / "build" / "cuda"
        names = architectures()
        flags = [*CUDA_FLAGS, *shlex.split(os.environ.get("NVCCFLAGS", ""))]
        flags += [f"-gencode=arch=compute_{name},code=sm_{name}" for name in names]
        flags.append(f"-gencode=arch=compute_{names[-1]},code=compute_{names[-1]}")
        flags.append(f"--threads={max(1, (os.cpu_count() or 1) // len(teams()))}")
        parts = {
            f"{kind}_{team}.o": [f"-DOPTLAYER_ISA=cuda_{team}", f"-DOPTLAYER_TEAM={team}", str(source)]
            for kind, source in CUDA_ENGINES.items()
            for team in teams()
        }
        parts["gradients.o"] = [str(CUDA / "gradients.cu")]
        own = [f"-DTORCH_TARGET_VERSION={TARGET}", f'-DOPTLAYER_ARCHITECTURES="{", ".join(names)}"']
        parts["library.o"] = [*own, "-isystem", str(torch / "include"), str(CUDA / "library.cpp")]
        objects = compile_all([*nvcc(), *flags, "-MMD"], parts, folder, quiet=True)
        link = [*nvcc(), "-shared", "-cudart=static", "-Xlinker=-z,defs", *objects]
        target.parent.mkdir(parents=True, exist_ok=True)
        make(target, [*link, f"-L{torch / 'lib'}", "-ltorch_cpu", "-lc10", "-ldl"], folder)


def compile_all(command: list[str], parts: dict[str, list[str]], folder: Path, quiet: bool = False) -> list[str]:
    """Compile each part with its options into an object, all at once; returns the objects."""
    folder.mkdir(parents=True, exist_ok=True)
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        tasks = [
            pool.submit(make, folder / name, [*command, "-c", *part], folder, quiet) for name, part in parts.items()
        ]
        for task in tasks:
            task.result()
    return [str(folder / name) for name in parts]


def make(output: Path, command: list[str], folder: Path, quiet: bool = False) -> None:
    """Run a command that writes `output`, unless it did so before and what it reads is as old as it was.

    What the command says is shown, or with `quiet` kept beside the output unless it fails."""
    command = [*command, "-o", str(output)]
    record, includes = folder / f"{output.name}.command", (folder / output.name).with_suffix(".d")
    text = shlex.join(command)
    inputs = [part for part in command if part.endswith((".o", ".cpp", ".cu")) and part != str(output)]
    if output.suffix == ".o" and includes.exists():
        inputs += includes.read_text().replace("\\\n", " ").partition(":")[2].split()  # "target :", nvcc writes
    if output.exists() and record.exists() and record.read_text() == text:
        age = output.stat().st_mtime
        if all(os.path.exists(path) and os.path.getmtime(path) < age for path in inputs):
            return
    done = subprocess.run(command, stderr=subprocess.PIPE, text=True, cwd=ROOT)
    if quiet and done.returncode == 0:
        output.with_suffix(".log").write_text(done.stderr)
    else:
        sys.stderr.write(done.stderr)
    if done.returncode != 0:
        raise OSError(f"{command[0]} failed on {Path(inputs[0]).name}")
    record.write_text(text)


reason = obstacle()
if reason is not None and BUILDING & set(sys.argv):
    give_up(reason)
extensions = []
if reason is None:
    extensions.append(Extension("optlayer._native", [LIBRARY, *ENGINES.values()], py_limited_api=True))
    if cuda_obstacle() is None:
        sources = [str(path.relative_to(ROOT)) for path in sorted((ROOT / "csrc").glob("*/cuda/*.c*"))]
        extensions.append(Extension("optlayer._cuda", sources, py_limited_api=True))
    elif os.environ.get("OPTLAYER_CUDA") == "1" and BUILDING & set(sys.argv):
        raise SystemExit(f"optlayer: the engine for CUDA was not built: {cuda_obstacle()}")
setup(ext_modules=extensions, cmdclass={"build_ext": Build})
