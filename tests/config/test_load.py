import re
from pathlib import Path
from typing import Literal

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import Field

from openmimo.config.base import Config, config_hash, settings, to_toml
from openmimo.config.load import load_config, preset_names, split_overrides
from openmimo.config.schema import Recipe
from openmimo.errors import UserError


class Stage(Config):
    tokens: int = Field(gt=0)
    """Length of the stage."""
    mixture: dict[str, float] = {}


class RL(Config):
    learning_rate: float = 1e-6
    """Peak learning rate,
    constant after warm-up."""
    batch_size: int = 32
    scheme: Literal["strict", "soft"] = "soft"
    limit: float | None = 2.0
    levels: int | Literal["auto"] = 3


class Schema(Config):
    name: str
    seed: int = 0
    debug: bool = False
    betas: tuple[float, float] = (0.9, 0.95)
    tags: list[str] = []
    rl: RL = RL()
    stages: list[Stage] = []


BASE = """
name = "base"
[rl]
learning_rate = 1e-5
[[stages]]
tokens = 100
mixture = { math = 0.25, code = 0.75 }
[[stages]]
tokens = 200
"""


@pytest.fixture
def recipe(tmp_path: Path) -> str:
    (tmp_path / "base.toml").write_text(BASE)
    return str(tmp_path / "base.toml")


def write(folder: Path, text: str) -> str:
    (folder / "child.toml").write_text(text)
    return str(folder / "child.toml")


def test_file_values_and_defaults(recipe: str) -> None:
    config = load_config(Schema, recipe)
    assert config.name == "base"
    assert config.rl == RL(learning_rate=1e-5)
    assert config.stages[0].mixture == {"math": 0.25, "code": 0.75}
    assert config.betas == (0.9, 0.95)


def test_extends_merges_tables_and_replaces_lists(recipe: str, tmp_path: Path) -> None:
    child = write(tmp_path, 'extends = "base.toml"\n[rl]\nbatch_size = 8\n[[stages]]\ntokens = 5\n')
    config = load_config(Schema, child)
    assert (config.rl.learning_rate, config.rl.batch_size) == (1e-5, 8)
    assert [stage.tokens for stage in config.stages] == [5]


def test_both_ways_to_write_an_override(recipe: str) -> None:
    words = ["rl.learning_rate=1e-4", "--rl.batch-size", "4", "--seed=-3", "--debug", "true"]
    config = load_config(Schema, recipe, words)
    assert (config.rl.learning_rate, config.rl.batch_size) == (1e-4, 4)
    assert (config.seed, config.debug) == (-3, True)


def test_overrides_reach_into_lists_and_read_every_type(recipe: str) -> None:
    words = [
        "stages.1.tokens=1e6",
        "stages.0.mixture.math=1",
        "betas=[0.8, 0.9]",
        'tags=["a", "b"]',
        "rl.limit=none",
        "name=2024",
        "rl.scheme=strict",
        "rl.levels=5",
    ]
    config = load_config(Schema, recipe, words)
    assert config.stages[1].tokens == 1_000_000
    assert config.stages[0].mixture == {"math": 1.0, "code": 0.75}
    assert config.betas == (0.8, 0.9)
    assert config.tags == ["a", "b"]
    assert config.rl.limit is None
    assert config.name == "2024"
    assert config.rl.scheme == "strict"
    assert config.rl.levels == 5
    assert load_config(Schema, recipe, ["rl.levels=auto"]).rl.levels == "auto"


def test_the_last_override_wins(recipe: str) -> None:
    assert load_config(Schema, recipe, ["seed=1", "seed=2"]).seed == 2


@pytest.mark.parametrize(
    ("word", "message"),
    [
        (
            "rl.learning_rte=1",
            "unknown setting rl.learning_rte (command line); did you mean rl.learning_rate?",
        ),
        ("learning_rate=1", "did you mean rl.learning_rate?"),
        ("stages.0.token=1", "did you mean stages.0.tokens?"),
        ("zzzzqqqq=1", "unknown setting zzzzqqqq (command line)"),
        ("rl.learning_rate=fast", "rl.learning_rate is 'fast' (command line): expected a valid"),
        ("rl.learning_rate=true", "rl.learning_rate is True (command line)"),
        ("rl.batch_size=1.5", "rl.batch_size is 1.5 (command line)"),
        ("debug=1", "debug is 1 (command line): expected a valid boolean"),
        ("rl.scheme=hard", "rl.scheme is 'hard' (command line): expected 'strict' or 'soft'"),
        ("stages.0.tokens=0", "stages.0.tokens is 0 (command line): expected greater than 0"),
        ("stages.2.tokens=1", "stages.2.tokens: there is no item 2, the list has 2 items"),
        ("seed.x=1", "unknown setting seed.x (command line)"),
        ("rl=1", "rl is 1 (command line)"),
        ("seed", "cannot read 'seed'"),
        ("--seed", "--seed needs a value"),
    ],
)
def test_wrong_overrides_are_one_clear_line(recipe: str, word: str, message: str) -> None:
    with pytest.raises(UserError, match=re.escape(message)) as caught:
        load_config(Schema, recipe, [word])
    assert "\n" not in str(caught.value)


def test_wrong_file_contents_name_the_file(recipe: str, tmp_path: Path) -> None:
    child = write(tmp_path, 'extends = "base.toml"\n[rl]\nbatchsize = 8\n')
    with pytest.raises(UserError, match=r"rl\.batchsize \(.*child\.toml\); did you mean rl\.batch"):
        load_config(Schema, child)
    child = write(tmp_path, 'extends = "base.toml"\n[rl]\nbatch_size = "8"\n')
    with pytest.raises(UserError, match=r"rl\.batch_size is '8' \(.*child\.toml\)"):
        load_config(Schema, child)
    # The fault is in the parent: the parent is named.
    Path(recipe).write_text(BASE + "\n[[stages]]\ntokens = -1\n")
    with pytest.raises(UserError, match=r"stages\.2\.tokens is -1 \(.*base\.toml\)"):
        load_config(Schema, write(tmp_path, 'extends = "base.toml"\n'))


def test_missing_and_broken_files(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no recipe 'nan': the presets are"):
        load_config(Schema, "nan")
    with pytest.raises(UserError, match=r"no recipe 'none\.toml'"):
        load_config(Schema, "none.toml")
    with pytest.raises(UserError, match=r"child\.toml is not valid TOML: Invalid value"):
        load_config(Schema, write(tmp_path, "name ="))
    with pytest.raises(UserError, match="name is not set"):
        load_config(Schema, write(tmp_path, "seed = 1"))
    with pytest.raises(UserError, match="extends itself"):
        load_config(Schema, write(tmp_path, 'extends = "child.toml"'))
    (tmp_path / "folder.toml").mkdir()
    with pytest.raises(UserError, match="cannot read the recipe"):
        load_config(Schema, str(tmp_path / "folder.toml"))


def test_rules_of_a_section_are_explained(tmp_path: Path) -> None:
    from pydantic import model_validator

    class Section(Config):
        low: int = 0
        high: int = 1

        @model_validator(mode="after")
        def _order(self) -> "Section":
            if self.low > self.high:
                raise ValueError("low must not be above high")
            return self

    class Root(Config):
        section: Section = Section()

    path = write(tmp_path, "[section]\nlow = 5\n")
    with pytest.raises(UserError, match=r"^section: low must not be above high \(.*child\.toml\)$"):
        load_config(Root, path)


def test_settings_are_frozen(recipe: str) -> None:
    config = load_config(Schema, recipe)
    with pytest.raises(ValueError, match="frozen"):
        config.seed = 1  # type: ignore[misc]


texts = st.text(st.characters(exclude_categories=["Cs"]))
floats = st.floats(allow_nan=False, allow_infinity=False)
configs = st.builds(
    Schema,
    name=texts,
    seed=st.integers(-(2**63), 2**63 - 1),
    debug=st.booleans(),
    betas=st.tuples(floats, floats),
    tags=st.lists(texts),
    rl=st.builds(RL, learning_rate=floats, limit=st.none() | floats),
    stages=st.lists(
        st.builds(
            Stage, tokens=st.integers(1, 10**15), mixture=st.dictionaries(texts, floats, max_size=3)
        ),
        max_size=3,
    ),
)


@given(config=configs)
def test_the_resolved_file_loads_to_an_equal_config(
    config: Schema, tmp_path_factory: pytest.TempPathFactory
) -> None:
    path = tmp_path_factory.getbasetemp() / "resolved.toml"
    path.write_text(to_toml(config), encoding="utf-8")
    assert load_config(Schema, str(path)) == config


def test_the_resolved_file_reads_well(recipe: str) -> None:
    text = to_toml(load_config(Schema, recipe, ["rl.limit=none", "stages.0.tokens=7"]))
    assert text.startswith('name = "base"\nseed = 0\ndebug = false\nbetas = [0.9, 0.95]\n')
    assert '[rl]\nlearning_rate = 1e-05\nbatch_size = 32\nscheme = "soft"\nlimit = "none"' in text
    assert "[[stages]]\ntokens = 7\n\n[stages.mixture]\nmath = 0.25\ncode = 0.75\n" in text


def test_hashes_depend_on_values_and_on_upstream_only(recipe: str) -> None:
    rl = load_config(Schema, recipe).rl
    assert config_hash(rl) == config_hash(RL(learning_rate=1e-5))
    assert config_hash(rl) != config_hash(RL())
    assert config_hash(rl, "a") != config_hash(rl, "b")
    assert config_hash(rl, "a", "b") != config_hash(rl, "ab")
    assert config_hash({"a": 1, "checkpoint_every": 5}) == config_hash({"a": 1})
    assert config_hash({"a": 1, "b": 2}) == config_hash({"b": 2, "a": 1}) == "1176b831c374ed00"


def test_settings_lists_every_key_with_its_docstring(recipe: str) -> None:
    listed = {setting.path: setting for setting in settings(load_config(Schema, recipe))}
    assert listed["rl.learning_rate"].help == "Peak learning rate, constant after warm-up."
    assert listed["rl.learning_rate"].value == 1e-5
    assert listed["stages.1.tokens"].value == 200
    assert "rl" not in listed
    assert "stages" not in listed


def test_words_are_split_into_pairs() -> None:
    assert split_overrides(["a.b=1", "--c-d", "-2", "--e=x=y"]) == [
        ("a.b", "1"),
        ("c_d", "-2"),
        ("e", "x=y"),
    ]


def test_presets_are_toml_files_of_the_package() -> None:
    folder = Path(__file__).parents[2] / "openmimo" / "recipes"
    assert preset_names() == sorted(path.stem for path in folder.glob("*.toml"))


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("model.max_position_embeddings=64", "pretrain.schedule.0.length is 128, more than"),
        ("sft.length=1024", "sft.length is 1024, more than model.max_position_embeddings, 512"),
        ("rl.slots=4", "slots must be at least group_size"),
        ("mtp_heads.mixture.general=-1", "the shares of mixture must be at least 0 and sum to 1"),
        ("pretrain.schedule=[]", "pretrain.schedule is empty: only a run with init_from may skip"),
        ("pretrain.schedule.0.until=1e9", "`until` must rise from row to row"),
        ("rl.domains=[]", "rl.domains: Tuple should have at least 1 item"),
        ("eval.temperature=inf", "eval.temperature"),
    ],
)
def test_settings_that_contradict_each_other_fail_before_anything_runs(
    override: str, message: str
) -> None:
    with pytest.raises(UserError) as error:
        load_config(Recipe, "nano", [override])
    assert message in str(error.value)
