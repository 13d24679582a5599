"""What a reader does with a page: type its commands one after another, in one folder.

Commands of ours run in this process, since to start one takes longer than most of what they do.
"""

from __future__ import annotations

import contextlib
import importlib.util
import io
import json
import re
import runpy
import shlex
import shutil
import sys
import tomllib
import traceback
from collections.abc import Iterator
from pathlib import Path

import click
from click.testing import CliRunner

from batchsim.cli import main
from tests.docs.given import GIVEN
from tests.docs.pages import MARKERS, ROOT, Block

#: Languages of blocks that are pictures, or that Sphinx itself runs.
SHOWN_ONLY = {"text", "{eval-rst}"}
SHELL = {"sh", "bash", "console"}
#: Top-level keys that only sweep files have.
OF_SWEEPS = {"base", "grid", "cases", "zip", "figure"}
TARGETS = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text("utf-8"), re.MULTILINE))
#: Options of the measuring package, which cannot be imported without torch.
MEASURING = {
    option
    for path in (ROOT / "calibration" / "src").rglob("*_command.py")
    for option in re.findall(r'"(--[a-z][a-z-]*)', path.read_text("utf-8"))
}


class WrongPageError(Exception):
    """What a page shows is not so."""


class Session:
    """Run blocks in a folder that has the checkout's own folders, and the files that readers would bring."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.faults: list[str] = []
        self._names: dict[str, object] = {"__name__": "__main__"}
        self._unused: dict[str, str] = {}
        for name in ("calibration", "docs", "experiments", "workloads"):
            (folder / name).symlink_to(ROOT / name)

    def run(self, block: Block) -> None:
        """Run a block, or see to it that it says why not; what is wrong is kept in `faults`."""
        try:
            self._check(block)
            if not self._is_left_out(block):
                self._bring(block)
                self._run(block)
        except WrongPageError as fault:
            self.faults.append(f"{block.where}: {fault}")

    def end(self) -> None:
        """See to it that each file of the page was used by a command that came after it."""
        self.faults += [f"{where}: nothing uses {name}" for name, where in self._unused.items()]

    def _check(self, block: Block) -> None:
        for marker, value in block.markers.items():
            if marker not in MARKERS or not value:
                raise WrongPageError(f"no such comment: {marker}: {value}")
        if block.language in SHELL:
            for line, _ in commands(block):
                check_command(line)
        if block.language not in SHELL | SHOWN_ONLY | {"python", "toml", "json", "yaml"}:
            raise WrongPageError(
                f"a block of {block.language or 'no language'}, which nobody knows how to run"
            )

        if block.language == "yaml" and "not run" not in block.markers:
            raise WrongPageError("a block of yaml is for other programs, and says why it is not run")

    def _is_left_out(self, block: Block) -> bool:
        needed = block.markers.get("needs")
        return (
            "not run" in block.markers
            or block.language in SHOWN_ONLY
            or bool(needed and importlib.util.find_spec(needed) is None)
        )

    def _bring(self, block: Block) -> None:
        for name in filter(None, block.markers.get("given", "").split(", ")):
            if name not in GIVEN:
                raise WrongPageError(f"nobody knows what is in {name}")
            if not (self.folder / name).exists():
                (self.folder / name).parent.mkdir(parents=True, exist_ok=True)
                GIVEN[name](self.folder / name)

    def _run(self, block: Block) -> None:
        if block.file_name:
            (self.folder / block.file_name).write_text(block.text, encoding="utf-8")
            self._unused[block.file_name] = block.where
            return
        match block.language:
            case "json":
                json.loads(block.text)
            case "python":
                expect(block.printed, self._python(block.text, block.where))
            case "toml":
                self._toml(block)
            case _:
                more = shlex.split(block.markers.get("run", ""))
                for line, shown in commands(block):
                    expect(shown or block.printed, self._command(line, shown, more))

    def _toml(self, block: Block) -> None:
        name = "block.toml"
        (self.folder / name).write_text(block.text, encoding="utf-8")
        is_sweep = bool(OF_SWEEPS & tomllib.loads(block.text).keys())
        line = f"batchsim sweep {name} -o sweeps --jobs 1" if is_sweep else f"batchsim run {name}"
        self._command(line, "", shlex.split(block.markers.get("run", "")))

    def _python(self, code: str, where: str) -> str:
        with contextlib.redirect_stdout(io.StringIO()) as printed:
            try:
                exec(compile(code, where, "exec"), self._names)
            except Exception as error:
                raise WrongPageError(traceback.format_exc(limit=-2)) from error
        return printed.getvalue()

    def _command(self, line: str, shown: str, more: list[str]) -> str:
        """What a line of a shell prints, on stdout and stderr together."""
        for name in [name for name in self._unused if re.search(rf"\b{Path(name).stem}\b", line)]:
            del self._unused[name]
        words, target = redirected(shlex.split(line, comments=True))
        env: dict[str, str] = {}
        while words and (named := re.match(r"([A-Z_]+)=(.*)", words[0])):
            env[named[1]], words = named[2], words[1:]
        words = [path for word in words for path in self._glob(word)]
        match words:
            case []:
                return ""
            case ["cp", *paths]:
                shutil.copy(*(self.folder / path for path in paths))
                return ""
            case ["python", script, *arguments]:
                return self.script(script, *arguments)
            case ["batchsim", *arguments]:
                given = [*arguments, *accepted(arguments, more)]
                with importing(
                    *(self.folder / path for path in env.get("PYTHONPATH", "").split(":") if path)
                ):
                    done = CliRunner().invoke(main, given, env={"COLUMNS": "250"})
                if (done.exit_code != 0) != shown.startswith("Error:"):
                    raise WrongPageError(f"{line}\nexit status {done.exit_code}\n{done.output[-2000:]}")
                if target:
                    (self.folder / target).write_text(done.stdout, encoding="utf-8")
                return done.output
        raise WrongPageError(f"nobody knows how to run: {line}")

    def script(self, script: str, *arguments: str) -> str:
        """What a Python file prints."""
        printed = io.StringIO()
        with (
            importing(self.folder / Path(script).parent),
            argv(script, *arguments),
            contextlib.redirect_stdout(printed),
        ):
            runpy.run_path(str(self.folder / script), run_name="__main__")
        return printed.getvalue()

    def _glob(self, word: str) -> list[str]:
        if "*" not in word:
            return [word]
        return sorted(str(path.relative_to(self.folder)) for path in self.folder.glob(word))


def commands(block: Block) -> Iterator[tuple[str, str]]:
    """Each command of a block, on one line, and what is shown below it."""
    text = re.sub(r"\\\n\s*", " ", block.text)
    if block.language != "console":
        yield from ((line, "") for line in text.splitlines() if shlex.split(line, comments=True))
        return
    for part in re.split(r"^\$ ", text, flags=re.MULTILINE)[1:]:
        line, _, shown = part.partition("\n")
        yield line, shown


def expect(shown: str, printed: str) -> None:
    """See to it that all lines shown were printed, in this order; ``...`` stands for anything."""
    there = plain(printed)
    for line in shown.splitlines():
        wanted = r".*?".join(re.escape(part.strip()) for part in plain(line).split("..."))
        found = re.search(rf"(?:^|(?<=\s)){wanted}(?=\s|$)", there) if wanted.strip() else None
        if not found and plain(line):
            raise WrongPageError(f"not printed: {line.strip()}\nbut: {there[:3000]}")
        there = there[found.end() :] if found else there


def plain(text: str) -> str:
    """Text without the lines of tables, all gaps alike."""
    return " ".join(re.sub(r"[─-╿]", " ", text).split())


def redirected(words: list[str]) -> tuple[list[str], str | None]:
    """The words before ``>``, and the file behind it."""
    if ">" in words:
        place = words.index(">")
        return words[:place], words[place + 1]
    return words, None


def found(arguments: list[str]) -> click.Command | None:
    """The command that the first arguments name, if any."""
    command: click.Command = main
    for word in arguments:
        if not isinstance(command, click.Group):
            break
        if word.startswith("-"):
            return command
        if word not in command.commands:
            return None
        command = command.commands[word]
    return command


def options(command: click.Command) -> set[str]:
    """All options that a command takes."""
    own = {name for param in command.params for name in (*param.opts, *param.secondary_opts)}
    return own | {"-h", "--help", "--version"}


def accepted(arguments: list[str], more: list[str]) -> list[str]:
    """Of more options, those that the command takes, with their values."""
    command = found(arguments)
    known = options(command) if command else set()
    takes = False
    taken = []
    for word in more:
        takes = word in known if word.startswith("--") else takes
        if takes:
            taken.append(word)
    return taken


def check_command(line: str) -> None:
    """See to it that command, options and targets of a line are there, whether or not it is run."""
    try:
        words = shlex.split(line, comments=True)
    except ValueError as error:
        raise WrongPageError(f"{line}: {error}") from error
    while words and re.match(r"[A-Z_]+=", words[0]):
        words = words[1:]
    program, arguments = (Path(words[0]).name, words[1:]) if words else ("", [])
    if program == "make":
        missing = [word for word in arguments if "=" not in word and word not in TARGETS]
        if missing:
            raise WrongPageError(f"no such target of make: {missing}")
    if program == "batchsim-calibrate":
        _refuse(line, arguments, MEASURING)
    if program == "batchsim" and arguments:
        command = found(arguments)
        if command is None:
            raise WrongPageError(f"no such command: {line}")
        _refuse(line, arguments, options(command))


def _refuse(line: str, arguments: list[str], known: set[str]) -> None:
    unknown = {word.split("=")[0] for word in arguments if word.startswith("--")} - known
    if unknown:
        raise WrongPageError(f"no such options: {sorted(unknown)} in {line}")


@contextlib.contextmanager
def importing(*folders: Path) -> Iterator[None]:
    """Find modules in these folders; other modules of their names are put aside meanwhile."""
    names = {file.stem for folder in folders for file in folder.glob("*.py")}
    paths, others = list(sys.path), {name: sys.modules.pop(name) for name in names & sys.modules.keys()}
    sys.path[:0] = map(str, folders)
    try:
        yield
    finally:
        sys.path[:] = paths
        for name in names & sys.modules.keys():
            del sys.modules[name]
        sys.modules.update(others)


@contextlib.contextmanager
def argv(*words: str) -> Iterator[None]:
    """Be called with these words."""
    before, sys.argv = sys.argv, list(words)
    try:
        yield
    finally:
        sys.argv = before
