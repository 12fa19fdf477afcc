# SPDX-License-Identifier: Apache-2.0
"""The compiled engine; pyproject.toml declares everything else.

csrc/qp/cpu/engine.cpp is compiled once for each instruction set of the processor's family, csrc/library.cpp once, and
all are linked into optlayer/_native.abi3.so, which needs torch but no particular Python.  Where that cannot be done (no
compiler, no torch, another system) the package is installed without it and runs on its reference engine.

    OPTLAYER_REQUIRE_NATIVE=1   stop instead
    OPTLAYER_NATIVE=0           do not even try
    OPTLAYER_SETS=avx2,...      only these instruction sets: quicker while the kernels are being written
    OPTLAYER_SANITIZE=1         with the address and undefined-behaviour sanitizers, slow
    CXX, CXXFLAGS, LDFLAGS      as everywhere
"""

import os
import platform
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
LIBRARY, ENGINE = "csrc/library.cpp", "csrc/qp/cpu/engine.cpp"
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


def give_up(reason: str) -> None:
    if os.environ.get("OPTLAYER_REQUIRE_NATIVE") == "1":
        raise SystemExit(f"optlayer: the compiled engine was not built: {reason}")
    sys.stderr.write(f"optlayer: the compiled engine was not built: {reason}; the reference engine will run\n")


class Build(build_ext):
    """Compiles all parts at once, and only those that changed since the last time."""

    def build_extension(self, extension: Extension) -> None:
        target = Path(self.get_ext_fullpath(extension.name))
        try:
            self.build(target)
        except OSError as error:
            target.unlink(missing_ok=True)
            give_up(str(error))

    def copy_extensions_to_source(self) -> None:
        build_py = self.get_finalized_command("build_py")
        for extension in self.extensions:
            inplace, built = self._get_inplace_equivalent(build_py, extension)
            if os.path.exists(built):
                shutil.copy2(built, inplace + ".new")
                os.replace(inplace + ".new", inplace)  # a process that has the old one mapped keeps it
            else:
                Path(inplace).unlink(missing_ok=True)

    def build(self, target: Path) -> None:
        torch = Path(find_spec("torch").origin).parent
        sanitize = os.environ.get("OPTLAYER_SANITIZE") == "1"
        folder = ROOT / "build" / ("sanitized" if sanitize else "native")
        flags = [*FLAGS, *(SANITIZED if sanitize else FAST), *shlex.split(os.environ.get("CXXFLAGS", ""))]
        sets = INSTRUCTION_SETS.get(platform.machine(), {"baseline": []})
        if os.environ.get("OPTLAYER_SETS"):
            sets = {name: sets[name] for name in os.environ["OPTLAYER_SETS"].split(",")}
        own = [f"-DTORCH_TARGET_VERSION={TARGET}", "-isystem", str(torch / "include")]
        own += [f"-DOPTLAYER_HAS_{name.upper()}" for name in sets]
        parts = {f"engine_{name}.o": [f"-DOPTLAYER_ISA={name}", *options, ENGINE] for name, options in sets.items()}
        parts["library.o"] = [*own, LIBRARY]
        folder.mkdir(parents=True, exist_ok=True)
        with ThreadPoolExecutor(os.cpu_count()) as pool:
            for done in [
                pool.submit(make, folder / name, [*compiler(), *flags, "-MMD", "-c", *part], folder)
                for name, part in parts.items()
            ]:
                done.result()
        objects = [str(folder / name) for name in parts]
        link = [*compiler(), *flags, "-shared", *objects, f"-L{torch / 'lib'}", "-ltorch_cpu", "-lc10"]
        if sys.platform == "linux" and not sanitize:
            link.append("-Wl,-z,defs")
        target.parent.mkdir(parents=True, exist_ok=True)
        make(target, [*link, *shlex.split(os.environ.get("LDFLAGS", ""))], folder)


def make(output: Path, command: list[str], folder: Path) -> None:
    """Run a command that writes `output`, unless it did so before and what it reads is as old as it was."""
    command = [*command, "-o", str(output)]
    record, includes = folder / f"{output.name}.command", (folder / output.name).with_suffix(".d")
    text = shlex.join(command)
    inputs = [part for part in command if part.endswith((".o", ".cpp")) and part != str(output)]
    if output.suffix == ".o" and includes.exists():
        inputs += includes.read_text().replace("\\\n", " ").split()[1:]
    if output.exists() and record.exists() and record.read_text() == text:
        age = output.stat().st_mtime
        if all(os.path.exists(path) and os.path.getmtime(path) < age for path in inputs):
            return
    done = subprocess.run(command, stderr=subprocess.PIPE, text=True, cwd=ROOT)
    sys.stderr.write(done.stderr)
    if done.returncode != 0:
        raise OSError(f"{command[0]} failed on {Path(inputs[0]).name}")
    record.write_text(text)


reason = obstacle()
if reason is not None and BUILDING & set(sys.argv):
    give_up(reason)
extension = Extension("optlayer._native", [LIBRARY, ENGINE], py_limited_api=True)
setup(ext_modules=[] if reason else [extension], cmdclass={"build_ext": Build})
