"""What decides a run besides its settings: the content of files, the code of policies, this package's own.

A run is named after all of it, so that what was finished under other content is never taken for it.
"""

from __future__ import annotations

import ast
import hashlib
import importlib.util
import sys
from collections.abc import Callable, Mapping
from functools import cache
from importlib.machinery import PathFinder
from pathlib import Path
from typing import Any, Literal, NamedTuple

import batchsim
from batchsim._version import __version__
from batchsim.config import RunConfig
from batchsim.errors import ConfigError
from batchsim.latency.profiles.aiconfigurator import model_folder, package_version
from batchsim.results.store import run_id
from batchsim.specs import GPUSpec, ModelSpec, load_gpu, load_model, spec_files
from batchsim.specs.names import known_name
from batchsim.workload.load import embedded_trace

#: What stands for this package among the inputs of a run.
PACKAGE = f"batchsim {__version__}"
#: Rooms that no simulation reads: the layers of `setup.cfg` hold that.
_NO_PART_OF_A_RUN = ("cli", "report", "figures", "validation")

_LOAD: Mapping[str, Callable[[str], GPUSpec | ModelSpec]] = {"gpu": load_gpu, "model": load_model}

#: Hash of each policy file when this process imported it.
_imported: dict[str, str] = {}


class Identity(NamedTuple):
    """What names a run.

    Attributes
    ----------
    key
        The same for the same settings, whatever the files they name hold.
    run_id
        The same for the same settings, content and version, wherever the files lie.
    inputs
        The files, by absolute path, and `PACKAGE`, with the hash of what each holds.
    """

    key: str
    run_id: str
    inputs: Mapping[str, str]


def identify(config: RunConfig) -> Identity:
    """Name a run by its settings and the content that they stand for; `ConfigError` if it cannot be read."""
    key = hashlib.sha256(config.model_dump_json().encode()).hexdigest()[:12]
    settings = config.model_dump(mode="json")
    inputs = {PACKAGE: package_hash()}

    def content(path: str | Path) -> str:
        path = Path(path).absolute()
        inputs[str(path)] = file_hash(path)
        return inputs[str(path)]

    workload, latency, cluster = settings["workload"], settings["latency"], settings["cluster"]
    trace = None
    if workload["generator"] is None:
        trace = content(workload["trace"] if workload["trace"] is not None else embedded_trace())
    workload["trace"] = None
    if latency["family"] is not None:
        latency["package"] = package_version()
        if (folder := model_folder(latency["model"])) is not None:
            latency["model"] = [Path(folder).name, content(Path(folder) / "config.json")]
    drafts = settings["engine"]["speculation"]
    own = [(one, "latency_file") for one in cluster["replicas"]]
    for table, name in [(latency, "file"), (drafts, "draft_latency_file"), *own]:
        table[name] = None if table[name] is None else content(table[name])
    for table in (cluster, *cluster["replicas"]):
        for kind in ("gpu", "model"):
            if (spec := _spec_file(table[kind], kind)) is not None:
                digests = [content(file) for file in spec_files(spec)]
                table[kind] = [_spec_name(spec, kind, *digests), *digests]
    settings["policy"]["sources"] = sorted(content(file) for file in policy_files(config.policy.preset))
    settings["autoscaler"]["sources"] = sorted(
        content(file) for file in policy_files(config.autoscaler.kind or "")
    )
    return Identity(key, run_id(settings, f"{__version__} {inputs[PACKAGE]}", trace), inputs)


def check_unchanged(inputs: Mapping[str, str]) -> None:
    """Raise `ConfigError` if what a run was named after is no longer what is there."""
    for name, planned in inputs.items():
        if (package_hash() if name == PACKAGE else file_hash(Path(name))) != planned:
            raise ConfigError(
                f"{name}: changed while the sweep ran; nothing is saved for what it was: run the sweep again"
            )


def file_hash(path: Path) -> str:
    """SHA-256 of a file, read again only where the file system tells of a change."""
    try:
        stat = path.stat()
        return _hash_once(path, stat.st_mtime_ns, stat.st_ctime_ns, stat.st_size, stat.st_ino)
    except OSError as error:
        raise ConfigError(f"{path}: cannot be read ({error.strerror})") from error


@cache
def package_hash() -> str:
    """Hash the code and data of this package that a simulation may use, as this process found it."""
    folder = Path(batchsim.__file__).parent
    together = hashlib.sha256()
    for file in sorted(folder.rglob("*")):
        inside = file.relative_to(folder)
        if inside.parts[0] not in _NO_PART_OF_A_RUN and file.suffix in (".py", ".json"):
            together.update(f"{inside.as_posix()} {file_hash(file)}\n".encode())
    return together.hexdigest()


def refresh_policy(preset: str) -> None:
    """Let the modules of a preset ``module:name`` be imported anew if one changed since they were."""
    files = policy_files(preset)
    hashes = {str(file): file_hash(file) for file in files}
    elsewhere = any(
        getattr(sys.modules.get(name), "__file__", None) not in (str(file), None)
        for file, name in files.items()
    )
    if elsewhere or any(_imported.get(file, now) != now for file, now in hashes.items()):
        for name in files.values():
            sys.modules.pop(name, None)
        importlib.invalidate_caches()
    _imported.update(hashes)


def policy_files(preset: str) -> dict[Path, str]:
    """List the module of a preset ``module:name`` and those that it imports from beside it, by their files.

    Beside it is what lies in its folder, below or, for a package, in that package; of installed packages
    only the policy's own counts.
    """
    module, colon, _ = preset.partition(":")
    root = _root(module.partition(".")[0]) if colon else None
    if root is None:
        return {}  # built in, or not there: whoever imports it says so
    is_installed = bool({"site-packages", "dist-packages"} & set(root.parts))
    found: dict[Path, str] = {}
    to_do = [module]
    while to_do:
        name = to_do.pop()
        top = name.partition(".")[0]
        file = _source(root, name)
        if (
            file is None
            or file in found
            or top == "batchsim"
            or (is_installed and top != module.split(".")[0])
        ):
            continue
        found[file] = name
        to_do += _imports(file, name, file_hash(file))
    return found


def _root(package: str) -> Path | None:
    """The folder that a new process would import a top-level module or package from."""
    try:
        spec = PathFinder.find_spec(package) or importlib.util.find_spec(package)
    except (ImportError, ValueError):
        return None
    if spec is None:
        return None
    inside = [*(spec.submodule_search_locations or ()), *([spec.origin] if spec.has_location else [])]
    return Path(str(inside[0])).parent.absolute() if inside else None


def _source(root: Path, module: str) -> Path | None:
    path = root.joinpath(*module.split("."))
    return next((file for file in (path / "__init__.py", path.with_suffix(".py")) if file.is_file()), None)


@cache
def _imports(file: Path, module: str, _digest: str) -> set[str]:
    """Modules that the import statements of a file name, wherever they are, and the packages around them."""
    package = module if file.name == "__init__.py" else module.rpartition(".")[0]
    names = {module}
    try:
        nodes = list(ast.walk(ast.parse(file.read_bytes())))
        for node in nodes:
            if isinstance(node, ast.Import):
                names |= {alias.name for alias in node.names}
            elif isinstance(node, ast.ImportFrom):
                base = importlib.util.resolve_name("." * node.level + (node.module or ""), package)
                names |= {base, *(f"{base}.{alias.name}" for alias in node.names)}
    except (SyntaxError, ValueError, ImportError, RecursionError, OSError) as error:
        raise ConfigError(f"{file}: cannot be imported ({error})") from error
    return {name.rsplit(".", up)[0] for name in names for up in range(name.count(".") + 1)}


def _spec_file(name: str | None, kind: Literal["gpu", "model"]) -> str | None:
    if name is None or known_name(name, "gpus" if kind == "gpu" else "models") is not None:
        return None
    if not all(file.is_file() for file in spec_files(name)):
        _LOAD[kind](name)  # which says what there is
    return name


@cache
def _spec_name(file: str, kind: Literal["gpu", "model"], *_digests: str) -> str:
    """Its name counts as well, which may be that of its file; read here, a faulty one ends the planning."""
    return _LOAD[kind](file).name


@cache
def _hash_once(path: Path, *_changes: Any) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()
