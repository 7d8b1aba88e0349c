"""Settings of the whole suite, and a model that can be rewarded."""

import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import settings

if TYPE_CHECKING:
    from openmimo.model.mimo import MiMo
    from openmimo.tokenizer import Tokenizer

# Before torch or numpy is imported: the tests are small, and threads that fight for the cores of
# a shared machine make them slower.
os.environ.setdefault("OMP_NUM_THREADS", "1")

# No deadline: a busy machine is not a failing property. Failing examples are printed in full.
settings.register_profile("openmimo", deadline=None, print_blob=True)
settings.load_profile("openmimo")


@pytest.fixture(scope="session")
def data_file() -> Callable[[str], Path]:
    """Finds a file of the public data sets, such as "gsm8k/test.jsonl"; without it the test skips.

    They are looked for in the folder that OPENMIMO_TEST_DATA names, else in `shared/data` beside
    the repository.
    """
    beside = Path(__file__).parents[2] / "shared" / "data"
    root = Path(os.environ.get("OPENMIMO_TEST_DATA", beside))

    def find(name: str) -> Path:
        if not (root / name).is_file():
            pytest.skip(f"no {name} in {root}: set OPENMIMO_TEST_DATA")
        return root / name

    return find


BROWSERS = ("chromium", "chromium-browser", "google-chrome", "chrome")


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    """Playwright's, over a Chromium of this machine; without one the test skips."""
    playwright = pytest.importorskip("playwright.sync_api")
    found = next(filter(None, map(shutil.which, BROWSERS)), None)
    if not found:
        pytest.skip("there is no Chromium")
    with playwright.sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=found, args=["--no-sandbox"])
        yield browser
        browser.close()


@pytest.fixture(scope="session")
def taught() -> "tuple[MiMo, Tokenizer, list[dict[str, Any]]]":
    r"""A model, its tokenizer, and problems that it solves about once in three times.

    A few SFT steps teach it to answer `\boxed{1}`, `\boxed{2}` or `\boxed{3}` to any question, by
    chance, after reasoning of three different lengths. The model has more rows than the tokenizer.
    """
    import torch

    from openmimo.config.schema import ModelConfig, OptimizerConfig
    from openmimo.model.mimo import MiMo
    from openmimo.tokenizer import Tokenizer
    from openmimo.training.batch import batch_rows
    from openmimo.training.loss import backward_step
    from openmimo.training.optim import build_optimizer, update
    from openmimo.training.packed_samples import PackedSamples
    from openmimo.training.sft import chat_segment

    text = "Which digit? so it is then we see that it is \\boxed{1} \\boxed{2}\n"
    tokenizer = Tokenizer.train([text] * 20, 290)
    config = ModelConfig(
        vocab_size=304, hidden_size=32, intermediate_size=48, num_hidden_layers=1,
        num_attention_heads=4, num_key_value_heads=2, head_dim=8, max_position_embeddings=64,
        initializer_range=0.1,
    )  # fmt: skip
    model = MiMo(config)
    model.init_weights(torch.Generator().manual_seed(0))
    questions = [f"Which digit{'?' * marks}" for marks in range(1, 9)]
    samples = [
        chat_segment(tokenizer, questions[(number + digit) % 8], f"{reason} \\boxed{{{digit}}}")
        for number, reason in enumerate(("so", "it is", "then we see that it is"))
        for digit in (1, 2, 3)
    ]
    rows = PackedSamples(samples, length=64, seed=0, name="sft")
    optimizer = build_optimizer(model.named_parameters(), OptimizerConfig())
    for step in range(60):
        batch = batch_rows([rows.row(4 * step + n) for n in range(4)], 64, tokenizer.doc_end_id)
        backward_step(model, batch, [], 0.0, tokens_per_microbatch=256)
        update(optimizer, 0.02 * (1 - step / 60), clip=1.0)
    # The last answer needs Math-Verify, the others only a comparison of integers.
    answers = ["1", "2", "3", "1", "2", "3", "1", "\\sqrt{4}"]
    problems = [
        {"id": f"p{n}", "domain": "math", "tier": "train", "prompt": question, "answer": answer}
        for n, (question, answer) in enumerate(zip(questions, answers, strict=True))
    ]
    return model.eval(), tokenizer, problems


@pytest.fixture(scope="session")
def own_module_cache(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """transformers copies remote code to a cache; keep it out of the user's home.

    One for all tests: the modules stay in `sys.modules`, with the paths of the first cache.
    """
    with pytest.MonkeyPatch.context() as patch:
        cache = str(tmp_path_factory.mktemp("modules"))
        patch.setattr("transformers.dynamic_module_utils.HF_MODULES_CACHE", cache)
        patch.setenv("HF_HUB_OFFLINE", "1")
        patch.syspath_prepend(cache)
        yield
