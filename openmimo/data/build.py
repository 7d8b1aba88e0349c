"""The data stage: everything that training, RL and evaluation read.

    RUN/stages/data/tokenizer/               BPE learned from the clean corpus, or the given one
    RUN/stages/data/shards/                  the four sources as tokens
    RUN/stages/data/sft.jsonl                {"prompt", "response", "query_id", "domain"}
    RUN/stages/data/problems/heldout.jsonl   for evaluation; no training text holds them
    RUN/stages/data/problems/rl.jsonl        for RL, with some of the hard tier for experiments
    RUN/stages/data/stats.json               what was gathered, dropped and kept

The stage takes under a minute and has no checkpoints: it starts over and replaces whatever an
interrupted attempt left.
"""

from __future__ import annotations

import hashlib
import json
import random
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

from openmimo.config.base import config_hash
from openmimo.config.schema import DataConfig, Recipe, TeacherConfig
from openmimo.data.decontaminate import DecontaminationIndex, normalised_words
from openmimo.data.dedup import DedupReport, deduplicate, drop_exact
from openmimo.data.documents import Document, write_records
from openmimo.data.harvest import BUDGETS, harvest
from openmimo.data.problem_sets import ProblemSets, draw_sets
from openmimo.data.problems.problem import Teacher
from openmimo.data.sft_filters import cap_responses, drop_incomplete, drop_mixed_language
from openmimo.data.shards import write_shard
from openmimo.data.synthesis import Chat, chats, pages, raw_samples, worksheets
from openmimo.data.tagging import SourceTags, tag
from openmimo.errors import UserError
from openmimo.progress import Progress
from openmimo.runs import Run, atomic_dir, atomic_write
from openmimo.tokenizer import TURN_START, Tokenizer
from openmimo.tokenizer_folder import FILES

LEAKED_QUERIES = 0.01
"""Held-out problems among the raw SFT queries, as a share of these: decontamination finds them."""
MAX_DOCUMENT_TOKENS = 256
"""Longer documents are stored in pieces of about equal length."""
SAMPLE_CHARACTERS = 600_000
"""The tokenizer learns from this much real text and from this much generated text."""
STEPS = 7
"""Lines of progress."""

Record = TypeVar("Record")


@dataclass
class Corpus:
    """The texts of pre-training: documents of the sources general, math and code, and chats.

    contaminated: texts that were left out because they hold a held-out problem, by source.
    """

    real: list[Document]
    generated: list[Document]
    chats: list[Chat]
    contaminated: dict[str, int] = field(default_factory=dict)

    def source(self, name: str) -> list[Document]:
        """The documents of one source, real ones first."""
        return [d for d in (*self.real, *self.generated) if d.source == name]


def run(recipe: Recipe, run: Run) -> None:
    """Stage `data`.

    Raises UserError if a source of text is missing, if a family has fewer distinct problems than
    asked for, or if the given tokenizer is missing, broken or does not fit the model.
    """
    data, seed = recipe.data, recipe.seed
    stage = run.stage("data", data_hash(recipe))
    if stage.is_done():
        return
    given = given_tokenizer(recipe)
    with Progress("data", STEPS) as progress:

        def done(step: int, **values: Any) -> None:
            progress.step(step, **values)
            run.interrupt.check()

        sets, index = draw_sets(data, seed)
        done(1, heldout=len(sets.heldout), rl=len(sets.rl), queries=len(sets.queries))

        harvested, _ = harvest(data.harvest.model_dump())
        distinct, dedup = deduplicate(harvested, data.dedup_threshold)
        real, tags = tag(distinct)
        done(2, harvested=len(harvested), distinct=len(real))

        corpus = Corpus(real, *_generate(data, seed, {p.prompt for p in sets.heldout}))
        done(3, pages=len(corpus.generated), chats=len(corpus.chats))

        corpus = decontaminate(corpus, index)
        samples, sft_counts = sft_samples(recipe, sets, index)
        verify_clean(sets, corpus, samples)
        done(4, contaminated=sum(corpus.contaminated.values()), sft=len(samples))

        tokenizer = given or Tokenizer.train(_tokenizer_sample(corpus, seed), data.vocab_size)
        with atomic_dir(stage.dir / "tokenizer") as folder:
            tokenizer.save(folder)
        done(5, vocabulary=tokenizer.vocab_size)

        sources = write_shards(stage.dir / "shards", corpus, tokenizer)
        done(6, tokens=sum(size["tokens"] for size in sources.values()))

        (stage.dir / "problems").mkdir(exist_ok=True)
        for name, problems in (("heldout", sets.heldout), ("rl", sets.rl)):
            write_records(stage.dir / "problems" / f"{name}.jsonl", (p.record() for p in problems))
        write_records(stage.dir / "sft.jsonl", samples)
        stats = {
            "sources": sources,
            "dedup": _dedup_stats(dedup),
            "domains": _domain_stats(tags),
            "decontamination": _decontamination_stats(sets, index, corpus, sft_counts),
            "sft": sft_counts,
        }
        atomic_write(stage.dir / "stats.json", json.dumps(stats, indent=2) + "\n")
        done(STEPS)
    stage.finish()


def data_hash(recipe: Recipe) -> str:
    """Hash of the settings, and of a given tokenizer, that this stage's files depend on."""
    cap = recipe.sft.responses_per_query
    settings = {"data": recipe.data.model_dump(mode="json"), "seed": recipe.seed, "cap": cap}
    names: list[Path] = []
    if recipe.init_from or recipe.data.tokenizer not in ("train", "qwen2"):  # these open no file
        given = Path(recipe.init_from or recipe.data.tokenizer)
        names = [given, *(given / name for name in FILES)]
    digests = [hashlib.sha256(path.read_bytes()).hexdigest() for path in names if path.is_file()]
    return config_hash(settings, *digests)


def given_tokenizer(recipe: Recipe) -> Tokenizer | None:
    """The tokenizer of `init_from`, or what `data.tokenizer` names; None where it is to be trained.

    Raises UserError if it cannot be read, is not for chat, or has more ids than the model has rows.
    """
    setting, name = "data.tokenizer", recipe.data.tokenizer
    if recipe.init_from is not None:
        setting, name = "init_from", recipe.init_from
    elif name == "train":
        return None
    if name == "qwen2":
        tokenizer = Tokenizer.qwen2()
    elif name.endswith(".tiktoken"):
        tokenizer = Tokenizer.qwen2(name)
    elif Path(name).is_dir():
        tokenizer = Tokenizer.load(name)
    elif setting == "init_from":
        raise UserError(f"init_from is {name!r}, which is no folder: make it with `mimo import`")
    else:
        raise UserError(
            f"data.tokenizer is {name!r}, which is no folder: use train, qwen2, the path of a "
            "tokenizer's folder or of a .tiktoken file"
        )
    if tokenizer.vocab_size > (rows := recipe.model.vocab_size):
        raise UserError(
            f"{setting} {name!r} has {tokenizer.vocab_size} ids and model.vocab_size is only "
            f"{rows}: raise it to at least {tokenizer.vocab_size}, or take another tokenizer"
        )
    if tokenizer.turn_start_id is None:
        raise UserError(f"{setting} {name!r} has no {TURN_START}: chats cannot be written")
    return tokenizer


def _teacher(config: TeacherConfig) -> Teacher:
    return Teacher(**config.model_dump())


def _generate(
    data: DataConfig, seed: int, heldout: Collection[str]
) -> tuple[list[Document], list[Chat]]:
    """Pages and chats by the corpus's teacher, each text once; heldout: the held-out prompts."""
    teacher = _teacher(data.corpus_teacher)
    found = [
        *pages("math", data.math_pages, teacher, random.Random(f"{seed}/math_pages")),
        *pages("code", data.code_pages, teacher, random.Random(f"{seed}/code_pages")),
        *worksheets(data.worksheets, teacher, random.Random(f"{seed}/worksheets"), heldout),
    ]
    talks = chats(data.synthetic_responses, teacher, random.Random(f"{seed}/chats"))
    return drop_exact(found), list(dict.fromkeys(talks))


def decontaminate(corpus: Corpus, index: DecontaminationIndex) -> Corpus:
    """The corpus without the texts that hold a held-out problem."""
    dropped: Counter[str] = Counter()

    def clean(
        records: Sequence[Record], text: Callable[[Record], str], source: Callable[[Record], str]
    ) -> list[Record]:
        kept, report = index.filter(records, text)
        dropped.update(source(records[found.record]) for found in report.dropped)
        return kept

    real = clean(corpus.real, lambda d: d.text, lambda d: f"{d.source}_real")
    generated = clean(corpus.generated, lambda d: d.text, lambda d: f"{d.source}_generated")
    talks = clean(corpus.chats, lambda c: c.text, lambda c: "synthetic")
    return Corpus(real, generated, talks, dict(dropped))


def sft_samples(
    recipe: Recipe, sets: ProblemSets, index: DecontaminationIndex
) -> tuple[list[dict[str, str]], dict[str, int]]:
    """The filtered SFT samples, and counts: queries, raw samples, dropped by reason, kept."""
    rng = random.Random(f"{recipe.seed}/sft")
    leaks = min(len(sets.heldout), round(LEAKED_QUERIES * len(sets.queries)))
    queries = [*sets.queries, *rng.sample(sets.heldout, leaks)]
    raw = raw_samples(queries, _teacher(recipe.data.sft_teacher), rng)

    complete, incomplete = drop_incomplete(raw)
    one_language, mixed = drop_mixed_language(complete)
    clean, report = index.filter(one_language, lambda r: f"{r['prompt']}\n{r['response']}")
    capped, over = cap_responses(clean, recipe.sft.responses_per_query)
    if not capped:
        raise UserError("no SFT sample passed the filters: raise data.sft_queries")
    names = ("prompt", "response", "query_id", "domain")
    counts = {
        "queries": len(queries),
        "raw": len(raw),
        **incomplete.dropped,
        **mixed.dropped,
        "contaminated": len(report.dropped),
        **over.dropped,
        "kept": over.kept,
        "queries kept": len({record["query_id"] for record in capped}),
    }
    return [{name: record[name] for name in names} for record in capped], counts


def verify_clean(sets: ProblemSets, corpus: Corpus, samples: Sequence[dict[str, str]]) -> None:
    """Search every training text for every held-out prompt, word by word and without the index.

    Raises AssertionError if one is found: then decontamination is broken.
    """
    texts = [
        *(document.text for document in (*corpus.real, *corpus.generated)),
        *(chat.text for chat in corpus.chats),
        *(f"{sample['prompt']}\n{sample['response']}" for sample in samples),
        *(problem.prompt for problem in sets.rl),
    ]
    everything = "\n".join(f" {' '.join(normalised_words(text))} " for text in texts)
    for problem in sets.heldout:
        if f" {' '.join(normalised_words(problem.prompt))} " in everything:
            raise AssertionError(f"a training text holds held-out problem {problem.id}")


def _tokenizer_sample(corpus: Corpus, seed: int) -> Iterator[str]:
    """Half real text, half generated text and chats, each in equal parts, in random order."""
    real = [[d.text for d in corpus.real if d.source == source] for source in BUDGETS]
    generated = [[d.text for d in corpus.generated if d.source == s] for s in ("math", "code")]
    for half in (real, [*generated, [chat.text for chat in corpus.chats]]):
        for texts in half:
            order = random.Random(f"{seed}/tokenizer").sample(texts, len(texts))
            yield from _up_to(order, SAMPLE_CHARACTERS // len(half))


def _up_to(texts: Iterable[str], characters: int) -> Iterator[str]:
    taken = 0
    for text in texts:
        if taken >= characters:
            return
        taken += len(text)
        yield text


def write_shards(folder: Path, corpus: Corpus, tokenizer: Tokenizer) -> dict[str, dict[str, int]]:
    """Write each source that has a text; return its documents, tokens and characters.

    Documents of the corpus end with `doc_end_id`, chats with `eos_id`.
    """
    sizes: dict[str, dict[str, int]] = {}

    def write(source: str, texts: Sequence[str], documents: Iterable[Sequence[int]]) -> None:
        if texts:
            meta = write_shard(folder, source, documents, tokenizer.vocab_size)
            characters = sum(map(len, texts))
            size = {"documents": len(texts), "tokens": meta.tokens, "characters": characters}
            sizes[source] = size

    for source in BUDGETS:
        texts = [document.text for document in corpus.source(source)]
        encoded = tokenizer.encode_many(texts)
        write(source, texts, (p for ids in encoded for p in pieces([*ids, tokenizer.doc_end_id])))
    texts = [chat.text for chat in corpus.chats]
    write("synthetic", texts, (_chat_ids(chat, tokenizer) for chat in corpus.chats))
    return sizes


def pieces(ids: Sequence[int]) -> Iterator[Sequence[int]]:
    """Cut a document into the fewest pieces of at most MAX_DOCUMENT_TOKENS, of equal length."""
    count = -(-len(ids) // MAX_DOCUMENT_TOKENS)
    for number in range(count):
        yield ids[number * len(ids) // count : (number + 1) * len(ids) // count]


def _chat_ids(chat: Chat, tokenizer: Tokenizer) -> list[int]:
    prompt = tokenizer.chat_prompt(chat.prompt)
    return [*prompt, *tokenizer.encode(chat.response), tokenizer.eos_id]


def _dedup_stats(report: DedupReport) -> dict[str, int]:
    counts = {
        "documents": report.documents,
        "exact_removed": report.exact_removed,
        "near_removed": report.near_removed,
        "clusters": report.clusters,
        "largest_cluster": report.largest_cluster,
    }
    return counts | {f"{name}_removed": n for name, n in report.removed_per_source.items()}


def _domain_stats(tags: dict[str, SourceTags]) -> dict[str, int]:
    """Harvested documents of each domain in each source."""
    return {
        f"{source}: {domain}": count
        for source, summary in tags.items()
        for domain, count in summary.domains.items()
    }


def _decontamination_stats(
    sets: ProblemSets,
    index: DecontaminationIndex,
    corpus: Corpus,
    sft_counts: dict[str, int],
) -> dict[str, int]:
    dropped = {f"{name}_removed": count for name, count in sorted(corpus.contaminated.items())}
    return {
        "heldout_problems": len(sets.heldout),
        "words_in_an_ngram": index.n,
        **dropped,
        "sft_samples_removed": sft_counts["contaminated"],
        "rl_problems_replaced": sets.rl_refused,
    }
