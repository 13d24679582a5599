from pathlib import Path

import pytest

from batchsim.errors import ConfigError
from batchsim.study.plan import plan, read_sweep_file

START = """
name = "small"
figure = "scaling"
[base]
workload.num_requests = 40
workload.generator.kind = "poisson"
"""

VALUES = [
    "3", "-1", "nan", "99999999999999999999999999", "true", "1979-05-27", '"x"',
    '""', '"[/red]"', '"""a\nb"""',
    "[]", "[[1]]", "[{a = 1}]", '[1, "a"]', "{}", "{a = {b = {c = 1}}}", '{"a\\nb" = 1}', "[{gpu = 1}]",
]  # fmt: skip
KEYS = [
    "seed", "policy", "policy.preset", "policy.queueing.kind", "policy.sizing", "policy.batching.chunk",
    "policy.routing", "workload", "workload.window", "workload.generator", "cluster.num_gpus",
    "cluster.model",
    "cluster.replicas", "latency", "latency.file", "predictor", "predictor.kind", "slo.e2e_ms",
    "clients.kind",
    "patience_s", "policy.preset.x", '"a\\nb"', "nonsense",
]  # fmt: skip
PLACES = [
    "{start}{key} = {value}\n",
    "{start}[grid]\n{key} = [{value}]\n",
    "{start}[[cases]]\n{key} = {value}\n",
    "{start}[[zip]]\n{key} = [{value}]\n",
    "{start}[[when]]\nhas.workload.num_requests = 40\ngrid.{key} = [{value}]\n",
    "{start}[[when]]\nhas.{key} = [{value}]\ngrid.seed = [1]\n",
]


def sweep_file(folder: Path, text: str) -> Path:
    path = folder / "sweep.toml"
    path.write_text(text, encoding="utf-8")
    return path


def trace(folder: Path) -> Path:
    file = folder / "mine.csv"
    file.write_text("arrival_s,prompt_tokens,output_tokens\n0,10,20\n1,10,20\n", encoding="utf-8")
    return file


@pytest.mark.parametrize("place", PLACES, ids=["base", "grid", "case", "zip", "when", "has"])
def test_a_malformed_sweep_file_is_one_line_in_our_words(tmp_path: Path, place: str) -> None:
    said = []
    for key in KEYS:
        for value in VALUES:
            path = sweep_file(tmp_path, place.format(start=START, key=key, value=value))
            try:
                plan(read_sweep_file(path), path)
            except ConfigError as error:
                said.append(str(error))

    assert len(said) > 0.75 * len(KEYS) * len(VALUES)
    assert all(sentence.startswith(str(tmp_path)) for sentence in said)
    assert not [
        sentence for sentence in said if "\n" in sentence or "http" in sentence or len(sentence) > 700
    ]


@pytest.mark.parametrize(
    "text", ["a = " + "[" * 2000 + "]" * 2000, ".".join("a" * 2000) + " = 1", "name = 'x\ny'", "\x00", "="]
)
def test_what_is_no_toml_or_nested_without_end_is_one_line(tmp_path: Path, text: str) -> None:
    with pytest.raises(ConfigError) as told:
        read_sweep_file(sweep_file(tmp_path, text))

    assert "\n" not in str(told.value)


def test_a_run_file_is_no_sweep_file(tmp_path: Path) -> None:
    file = tmp_path / "chat.toml"
    file.write_text("seed = 1\n[workload]\nrequest_rate = 4.0\n", encoding="utf-8")

    with pytest.raises(ConfigError, match=r"chat\.toml: a run file, for `batchsim run`"):
        read_sweep_file(file)


def test_the_files_that_a_sweep_names_are_sought_in_its_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "here"
    folder.mkdir()
    trace(folder)
    monkeypatch.chdir(tmp_path)
    text = """
        name = "paths"
        figure = "scaling"
        base.workload.trace = "mine.csv"
        base.policy.preset = "vllm_v1"
        base.cluster.replicas = [{gpu = "h100", latency_file = "mine.csv"}]
    """

    (run,) = plan(read_sweep_file(sweep_file(folder, text)))

    assert Path(str(run.config.workload.trace)) == folder / "mine.csv"
    assert run.config.cluster.replicas[0].latency_file == str(folder / "mine.csv")
    assert run.config.cluster.replicas[0].gpu == "h100"


def test_a_file_that_lies_in_the_current_folder_alone_is_not_found(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "here"
    folder.mkdir()
    trace(tmp_path)
    monkeypatch.chdir(tmp_path)
    path = sweep_file(folder, 'name = "a"\nfigure = "scaling"\nbase.workload.trace = "mine.csv"\n')

    with pytest.raises(ConfigError, match=r"here/mine\.csv: cannot be read"):
        plan(read_sweep_file(path))


def test_overrides_win_over_base_grid_and_cases(tmp_path: Path) -> None:
    text = f'{START}seed = 1\n[grid]\ncluster.num_gpus = [1, 2]\n[[cases]]\nseed = 2\nlabel = "a"\n'

    runs = plan(read_sweep_file(sweep_file(tmp_path, text), overrides={"seed": 7, "cluster.num_gpus": 3}))

    assert [(run.config.seed, run.config.cluster.num_gpus, run.case) for run in runs] == [(7, 3, "a")]


@pytest.mark.parametrize(
    "body", ["import sys; sys.exit(0)", "def f(:", "1 / 0", "from batchsim import nothing"]
)
def test_an_own_policy_that_cannot_be_imported_ends_the_planning(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, body: str
) -> None:
    monkeypatch.syspath_prepend(str(tmp_path))
    name = f"faulty{abs(hash(body))}"
    (tmp_path / f"{name}.py").write_text(body, encoding="utf-8")
    path = sweep_file(tmp_path, f'{START}policy.preset = "{name}:mine"\n')

    with pytest.raises(ConfigError, match=r"cannot be imported"):
        plan(read_sweep_file(path), path)


AXES = """
name = "small"
[base]
workload.num_requests = 40
workload.generator.kind = "poisson"
workload.generator.rate_per_s = 1.0
workload.generator.prompt = {kind = "fixed", tokens = 10}
workload.generator.output = {kind = "uniform", low = 1, high = 90}
workload.training_fraction = 0.1
"""
BINS = """
[grid]
policy.preset = ["static_fifo", "multi_bin"]
seed = [1, 2]
[[when]]
has.policy.preset = "multi_bin"
grid.policy.num_bins = [2, 4]
"""


def points(folder: Path, text: str, **given: object) -> list[tuple[object, ...]]:
    path = sweep_file(folder, AXES + text)
    runs = plan(read_sweep_file(path, **given), path)  # type: ignore[arg-type]
    return [tuple(run.varied.values()) for run in runs]


def test_zipped_lists_go_together_within_the_grid(tmp_path: Path) -> None:
    zipped = "[grid]\nseed = [1, 2]\n[[zip]]\ncluster.num_gpus = [1, 4]\npolicy.batch_size = [8, 2]\n"

    assert points(tmp_path, zipped) == [(1, 1, 8), (1, 4, 2), (2, 1, 8), (2, 4, 2)]


def test_a_conditional_axis_is_one_of_the_points_that_have_what_it_asks_for(tmp_path: Path) -> None:
    none = plan(read_sweep_file(sweep_file(tmp_path, AXES)))[0].config.policy.num_bins

    assert points(tmp_path, BINS) == [
        *(("static_fifo", seed, none) for seed in (1, 2)),
        *(("multi_bin", seed, bins) for seed in (1, 2) for bins in (2, 4)),
    ]


def test_a_condition_may_ask_for_what_another_one_adds_and_for_a_case(tmp_path: Path) -> None:
    more = '[[when]]\nhas.policy.num_bins = 4\nhas.case = ["b"]\ngrid.policy.batch_size = [1, 2]\n'
    cases = '[[cases]]\nlabel = "a"\n[[cases]]\nlabel = "b"\n'

    runs = plan(read_sweep_file(sweep_file(tmp_path, AXES + BINS + more + cases)))

    of_two = [run for run in runs if run.config.policy.batch_size == 2]
    assert [(run.case, run.varied["policy.num_bins"]) for run in of_two] == [("b", 4), ("b", 4)]
    assert len(runs) == 6 + 8


def test_replications_are_runs_of_one_point_with_seeds_of_their_own(tmp_path: Path) -> None:
    path = sweep_file(
        tmp_path, AXES.replace("[base]", "replications = 3\n[base]") + "[grid]\nseed = [0, 7]\n"
    )

    runs = plan(read_sweep_file(path), path)

    assert [(run.varied["seed"], run.varied["replication"]) for run in runs] == [
        (seed, number) for seed in (0, 7) for number in range(3)
    ]
    assert runs[0].config.seed == 0
    assert runs[3].config.seed == 7
    assert len({run.config.seed for run in runs}) == len({run.run_id for run in runs}) == 6


def test_two_policies_have_the_same_seeds_in_a_replication(tmp_path: Path) -> None:
    path = sweep_file(tmp_path, AXES + '[grid]\npolicy.preset = ["static_fifo", "multi_bin"]\n')

    seeds = [run.config.seed for run in plan(read_sweep_file(path, replications=4), path)]

    assert seeds[:4] == seeds[4:]


def test_one_replication_is_the_run_itself(tmp_path: Path) -> None:
    path = sweep_file(tmp_path, AXES)

    alone, once = plan(read_sweep_file(path)), plan(read_sweep_file(path, replications=1))

    assert [run.run_id for run in alone] == [run.run_id for run in once]
    assert "replication" not in once[0].varied


def test_a_condition_may_have_replications_of_its_own_unless_the_caller_says_how_many(tmp_path: Path) -> None:
    text = "[grid]\ncluster.num_gpus = [1, 2]\n[[when]]\nhas.cluster.num_gpus = 1\nreplications = 3\n"

    assert points(tmp_path, text) == [(1, 0), (1, 1), (1, 2), (2, 0)]
    assert points(tmp_path, text, replications=2) == [(1, 0), (1, 1), (2, 0), (2, 1)]


def test_what_is_given_besides_wins_over_every_axis(tmp_path: Path) -> None:
    zipped = "[[zip]]\ncluster.num_gpus = [1, 4]\npolicy.batch_size = [8, 2]\n"
    given = {"policy.num_bins": 8, "policy.batch_size": 3, "policy.preset": "multi_bin"}

    runs = plan(read_sweep_file(sweep_file(tmp_path, AXES + BINS + zipped), overrides=given))

    assert [(run.varied["seed"], run.varied["cluster.num_gpus"]) for run in runs] == [
        (1, 1),
        (1, 4),
        (2, 1),
        (2, 4),
    ]
    assert {(run.config.policy.num_bins, run.config.policy.batch_size) for run in runs} == {(8, 3)}


def test_a_zip_all_of_which_is_given_leaves_one_point(tmp_path: Path) -> None:
    zipped = "[[zip]]\ncluster.num_gpus = [1, 4]\npolicy.batch_size = [8, 2]\n"

    given = {"cluster.num_gpus": 2, "policy.batch_size": 3}

    assert points(tmp_path, zipped, overrides=given) == [()]


def test_full_puts_its_axes_in_place_of_the_small_ones(tmp_path: Path) -> None:
    when = "{has = {policy.preset = 'multi_bin'}, grid = {policy.num_bins = [8]}}"
    full = f"[full]\nreplications = 2\nwhen = [{when}]\n"

    assert points(tmp_path, BINS.replace("[1, 2]", "[1]") + full, full=True) == [
        (preset, 1, bins, number)
        for preset, bins in (("static_fifo", None), ("multi_bin", 8))
        for number in (0, 1)
    ]


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("[[zip]]\nseed = [1, 2]\npolicy.batch_size = [1]\n",
         r"zip.*lists that go together have the same length; seed has 2 and policy\.batch_size has 1"),
        ("[[zip]]\nseed = 1\n", r"zip\.0\.seed is 1: "),
        ("[grid]\nseed = [1]\n[[zip]]\nseed = [2]\n", "seed is set by the grid and by a zip"),
        ("[[cases]]\nseed = 1\n[[zip]]\nseed = [2]\n", "seed is set by a case and by a zip"),
        (BINS + "[[zip]]\npolicy.num_bins = [2]\n", r"policy\.num_bins is set by a zip and by a condition"),
        (BINS + "[[when]]\nhas.seed = 1\ngrid.policy.num_bins = [2]\n", "set by two conditions that hold"),
        ("[[when]]\nhas.polcy.preset = 'x'\ngrid.seed = [2]\n", r"for polcy\.preset, which the sweep"),
        (BINS.replace('"multi_bin"\ng', '"multi_bun"\ng'), r"preset = multi_bun, which no point has; did"),
        (BINS.replace("grid.policy.num_bins = [2, 4]", ""), r"when\.0: adds nothing; it needs"),
        (BINS.replace('has.policy.preset = "multi_bin"', ""), r"when\.0\.has: field required"),
    ],
)  # fmt: skip
def test_axes_that_cannot_be_are_refused_in_a_sentence(tmp_path: Path, text: str, said: str) -> None:
    with pytest.raises(ConfigError, match=rf"sweep\.toml: .*{said}"):
        points(tmp_path, text)


@pytest.mark.parametrize("number", [0, -1])
def test_a_number_of_replications_below_one_is_refused(tmp_path: Path, number: int) -> None:
    with pytest.raises(ConfigError, match=f"replications is {number}; a whole number >= 1 is needed"):
        points(tmp_path, BINS, replications=number)
