"""That faults of a page are found, on small pages with one each."""

import sys
from pathlib import Path
from types import ModuleType

import pytest

from tests.docs.pages import blocks
from tests.docs.session import Session


def faults(folder: Path, page: str) -> list[str]:
    session = Session(folder)
    for block in blocks(page, "page.md"):
        session.run(block)
    session.end()
    return session.faults


@pytest.fixture(autouse=True)
def in_a_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


RUN = "batchsim run --policy vllm_v1 --request-rate 2"


@pytest.mark.parametrize(
    ("page", "fault"),
    [
        ("```sh\nbatchsim runn\n```", "no such command"),
        (f"```sh\n{RUN} --num-request 9\n```", "no such options"),
        (f"<!-- not run: takes hours -->\n```sh\n{RUN} --nonesuch\n```", "no such options"),
        ("<!-- not run: needs vLLM -->\n```sh\nbatchsim-calibrate vllm a --nope\n```", "no such options"),
        ("<!-- not run: takes hours -->\n```sh\nmake sweeep\n```", "no such target"),
        ("```sh\nmake sweep\n```", "nobody knows how to run"),
        ("<!-- skip: takes hours -->\n```sh\nmake sweep\n```", "no such comment"),
        ("```\nbatchsim policies\n```", "no language"),
        ("Indented:\n\n    batchsim policies\n", "no language"),
        ("```rust\nfn main() {}\n```", "rust"),
        ("```sh\nbatchsim run --trace missing.csv\n```", "exit status 2"),
        ("```python\nimport batchsim\nbatchsim.simulte()\n```", "has no attribute 'simulte'"),
        ("```python\nprint(1 + 1)\n```\n```text\n3\n```", "not printed: 3"),
        ("```toml\n[workload]\nnum_request = 3\n```", "num_request"),
        ("```toml\n# a.toml\nseed = 1\n```", "nothing uses a.toml"),
        ("```console\n$ batchsim hardware l4\nzebra\n```", "not printed: zebra"),
    ],
)
def test_what_is_wrong_on_a_page_is_found(tmp_path: Path, page: str, fault: str) -> None:
    (told,) = faults(tmp_path, page)

    assert told.startswith("page.md:")
    assert fault in told


@pytest.mark.parametrize(("shown", "is_right"), [("30", True), ("31", False), ("3", False)])
def test_numbers_are_those_that_are_printed(tmp_path: Path, shown: str, is_right: bool) -> None:
    page = f"```console\n$ {RUN} --num-requests 30\n30 requests of ...\n Finished   {shown}   requests\n```"

    assert (faults(tmp_path, page) == []) == is_right


def test_blocks_of_a_page_are_of_one_reader(tmp_path: Path) -> None:
    page = """
```python
# mine.py
from batchsim.policies import FixedSize, Fifo, Greedy, Preset
plain = Preset(Fifo(), FixedSize(4), Greedy(), paper="none")
```

<!-- run: --num-requests 20 -->
```sh
batchsim policies
batchsim hardware a100-80g > gpu.json   # a comment
PYTHONPATH=. batchsim run --policy mine:plain --set cluster.gpu=gpu.json \\
    --request-rate 0.1
```

```python
import json
memory = json.load(open("gpu.json"))["memory_bytes"]
```

```python
print(memory)
```
```text
85899345920
```
"""

    assert faults(tmp_path, page) == []


def test_a_block_whose_module_is_missing_is_left_out(tmp_path: Path) -> None:
    page = "<!-- needs: no_such_module -->\n```sh\nbatchsim run --trace a.csv\n```"

    assert faults(tmp_path, page) == []


def test_modules_of_other_tests_are_left_as_they_were(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    mine = ModuleType("mine")
    monkeypatch.setitem(sys.modules, "mine", mine)
    page = """
```python
# mine.py
from batchsim.policies import FixedSize, Fifo, Greedy, Preset
plain = Preset(Fifo(), FixedSize(4), Greedy(), paper="none")
```

```sh
PYTHONPATH=. batchsim run --policy mine:plain --num-requests 20 --request-rate 0.1
```
"""

    assert faults(tmp_path, page) == []
    assert sys.modules["mine"] is mine
