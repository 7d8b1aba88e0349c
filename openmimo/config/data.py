"""Corpus, tokenizer and problems."""

from __future__ import annotations

from pydantic import Field

from openmimo.config.base import Config


class TeacherConfig(Config):
    """Habits of whoever wrote a text; corpora mix careful and careless authors."""

    direct: float = Field(ge=0, le=1)
    """Share of mathematics answers given without working, as answer keys print them."""
    slip: float = Field(ge=0, le=1)
    """Probability that one step of a worked answer is wrong."""
    sloppy: float = Field(ge=0, le=1)
    """Probability that a clause of a program is written in its careless form."""


class HarvestConfig(Config):
    """Characters of real text to take; what the installation carries is the upper limit."""

    general: int = Field(default=1_500_000, gt=0)
    """For the general source: language reference, documentation of packages."""
    math: int = Field(default=1_500_000, gt=0)
    """For the math source: documentation of mathematical packages."""
    code: int = Field(default=1_500_000, gt=0)
    """For the code source: sources of the standard library."""


class DataConfig(Config):
    """Corpus, tokenizer and problems (report, sections 2.1, 3.1 and 3.2)."""

    tokenizer: str = Field(default="train", min_length=1)
    """`train`: BPE learned from the corpus. `qwen2`: that of MiMo-7B, rebuilt from the ranks in the
    package dashscope. Else the path of a folder with a tokenizer.json, or of a .tiktoken file of
    Qwen's ranks."""
    vocab_size: int = Field(default=1024, gt=258)
    """Size of the BPE vocabulary trained on the corpus; not read with another `tokenizer`."""
    harvest: HarvestConfig = HarvestConfig()
    """Real text taken for each source."""
    math_pages: int = Field(default=12_000, ge=0)
    """Pages of generated mathematics with working, added to the math source."""
    worksheets: int = Field(default=6_000, ge=0)
    """Pages of bare drills, added to the math source: many steps, few words."""
    code_pages: int = Field(default=6_000, ge=0)
    """Pages of generated programming problems with solutions, added to the code source."""
    synthetic_responses: int = Field(default=4_000, ge=0)
    """Chat-formatted teacher responses of the synthetic source (stage 3)."""
    corpus_teacher: TeacherConfig = TeacherConfig(direct=0.4, slip=0.01, sloppy=0.4)
    """Who wrote the generated pages of the corpus."""
    sft_teacher: TeacherConfig = TeacherConfig(direct=0.25, slip=0.01, sloppy=0.25)
    """Who wrote the SFT responses: better, not perfect."""
    sft_queries: int = Field(default=1_500, gt=0)
    """Queries answered for SFT, before filtering."""
    rl_problems: int = Field(default=2_000, gt=0)
    """Problems for RL, half mathematics and half code."""
    heldout_problems: int = Field(default=600, gt=0)
    """Problems for evaluation, half mathematics and half code, half of each in the hard tier."""
    dedup_threshold: float = Field(default=0.8, gt=0, le=1)
    """Jaccard similarity of word 5-grams from which two documents count as near duplicates."""
    decontamination_ngram: int = Field(default=16, gt=0)
    """Length in words of the n-grams that mark contaminated text (report: 16)."""
