import contextlib
import fcntl
import io
import os
import pty
import signal
import subprocess
import sys
import termios
import time

import numpy as np
import pytest
import torch

from openmimo.errors import UserError
from openmimo.inference.chat import Conversation, chat, visible
from openmimo.inference.protocol import Completion, Request, Tokens
from openmimo.model.checkpoint import write_model
from openmimo.tokenizer import Tokenizer

TEXTS = ["the cat sat on the mat and looked at the other cat, naïve as it was"] * 20


@pytest.fixture(scope="session")
def tokenizer():
    return Tokenizer.train(TEXTS, vocab_size=290)


@pytest.fixture(scope="session")
def talker(make_model, tokenizer):
    return make_model(vocab_size=320, max_position_embeddings=256)


@pytest.fixture(scope="session")
def release(tmp_path_factory, talker, tokenizer):
    folder = tmp_path_factory.mktemp("release")
    write_model(talker, folder, torch.float32, tokenizer)
    return folder


def conversation(talker, tokenizer, **changes):
    settings = {"max_new_tokens": 12, "temperature": 1.0, "seed": 3, **changes}
    return Conversation(talker, tokenizer, Request("chat", [0], **settings))


def test_an_answer_is_what_the_model_generates_after_the_chat_prompt(talker, tokenizer, reference):
    talk = conversation(talker, tokenizer, temperature=0.0)
    first = "".join(talk.answer("the cat"))
    stops = (tokenizer.eos_id, tokenizer.doc_end_id)
    used = tokenizer.vocab_size

    def expected(messages):
        request = Request(0, tokenizer.chat_prompt(messages), 12, temperature=0.0, stop_ids=stops)
        return tokenizer.decode(reference(talker, request, used))

    messages = [{"role": "user", "content": "the cat"}]
    assert first == expected(messages)
    messages += [
        {"role": "assistant", "content": first},
        {"role": "user", "content": "and?"},
    ]
    assert "".join(talk.answer("and?")) == expected(messages)
    talk.reset()
    assert "".join(talk.answer("the cat")) == first


def test_drafts_change_nothing_said_greedily(talker, tokenizer):
    template = Request("chat", [0], 40, temperature=0.0)
    said = [
        "".join(Conversation(talker, tokenizer, template, "", speculative).answer("mat"))
        for speculative in (True, False)
    ]
    assert said[0] == said[1]


def test_an_answer_left_early_stays_in_the_conversation(talker, tokenizer):
    talk = conversation(talker, tokenizer, max_new_tokens=60)
    pieces = talk.answer("the cat")
    heard = next(pieces)
    pieces.close()
    assert talk._messages[-1] == {"role": "assistant", "content": heard}


class Scripted:
    """An engine that says one text to everything, a token a step, and keeps the requests."""

    def __init__(self, tokenizer, said):
        self._ids, self.asked = tokenizer.encode(said), []

    def submit(self, requests):
        self.asked += requests
        self._count = 0

    def step(self):
        self._count += 1
        said = self.generated(0)
        done = Completion(0, said.token_ids, said.log_probs, "stop")
        return [done] if self._count == len(self._ids) else []

    def generated(self, request_id):
        ids = np.array(self._ids[: self._count], np.int32)
        return Tokens(ids, np.zeros(len(ids), np.float32))

    def abort(self, ids):
        return []


@pytest.mark.parametrize(
    ("said", "kept"),
    [
        ("<think>\nthe cat?\n</think>\n\nthe mat", "the mat"),
        ("<think>\nthe cat and", ""),
        ("the <think> mat", "the <think> mat"),
    ],
)
def test_earlier_thinking_is_not_shown_to_the_model_again(talker, tokenizer, said, kept):
    talk = conversation(talker, tokenizer)
    talk._engine = engine = Scripted(tokenizer, said)
    assert "".join(talk.answer("mat?")) == said
    list(talk.answer("and?"))
    messages = [
        {"role": "user", "content": "mat?"},
        {"role": "assistant", "content": kept},
        {"role": "user", "content": "and?"},
    ]
    assert list(engine.asked[1].prompt_ids) == tokenizer.chat_prompt(messages)


def test_control_characters_are_escaped():
    """A model that says them must not move the cursor, or retitle the terminal."""
    assert visible("\x1b]0;title\x07 a\r\n\tb\x9b2J\x7f\x00") == (
        "\\x1b]0;title\\x07 a\\r\n\tb\\x9b2J\\x7f\\x00"
    )
    text = "naïve \u00a0\u3000 👩\u200d👩\u200d👧 العربية\n"
    assert visible(text) == text


def test_a_full_context_shortens_the_answer_and_then_ends_the_conversation(talker, tokenizer):
    talk = conversation(talker, tokenizer, max_new_tokens=10_000, temperature=0.9)

    def talk_on():
        for _ in range(100):
            list(talk.answer("the cat sat on the mat"))

    with pytest.raises(UserError, match="start anew with /reset"):
        talk_on()
    talk.reset()
    list(talk.answer("the cat"))


def piped(monkeypatch, capsys, release, text, **options):
    stdin = io.TextIOWrapper(io.BytesIO(text))
    monkeypatch.setattr(sys, "stdin", stdin)
    chat(release, **{"temperature": 0.0, "max_tokens": 8, **options})
    return capsys.readouterr().out


def test_through_a_pipe_each_line_is_a_message(monkeypatch, capsys, release):
    one = piped(monkeypatch, capsys, release, b"the cat\n")
    both = piped(monkeypatch, capsys, release, b"the cat\n\n/reset\nthe cat\n/exit\nmore\n")
    assert one
    assert both == 2 * one
    assert piped(monkeypatch, capsys, release, b"\xff\xfe broken\n")


def test_what_the_output_cannot_show_is_replaced(monkeypatch, release):
    output = io.BytesIO()
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(output, encoding="ascii"))
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(b"the cat\n")))
    chat(release, temperature=1.5, max_tokens=100, seed=1)
    assert b"?" in output.getvalue()


@pytest.mark.parametrize("name", ["stdin", "stdout"])
def test_a_closed_stream_is_refused(monkeypatch, release, name):
    monkeypatch.setattr(sys, name, None)  # as `mimo chat DIR <&-` has it
    with pytest.raises(UserError, match=r"standard .*put is closed"):
        chat(release)


def test_a_seed_makes_answers_repeat(monkeypatch, capsys, release):
    options = {"temperature": 1.0, "max_tokens": 30}
    outputs = [
        piped(monkeypatch, capsys, release, b"the cat\nmat\n", **options, seed=seed)
        for seed in (5, 5, 6, None, None)
    ]
    assert outputs[0] == outputs[1]
    assert len(set(outputs)) == 4


def test_only_a_terminal_is_shielded_from_control_characters(monkeypatch, capsys, release):
    options = {"temperature": 1.5, "max_tokens": 150, "seed": 1}
    raw = piped(monkeypatch, capsys, release, b"the cat\n", **options)
    assert visible(raw) != raw
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True)
    assert piped(monkeypatch, capsys, release, b"the cat\n", **options) == visible(raw)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"temperature": -1.0}, "temperature is -1"),
        ({"top_p": 0.0}, "top_p is 0"),
        ({"max_tokens": 0}, "max_new_tokens is 0"),
    ],
)
def test_impossible_settings_are_refused_before_loading(options, message):
    with pytest.raises(UserError, match=message):
        chat("no-such-folder", **options)


def test_a_missing_folder_is_refused(tmp_path):
    with pytest.raises(UserError, match="no model folder"):
        chat(tmp_path / "nothing")


def own_terminal():
    """In the child: standard input is the terminal whose Ctrl-C reaches it."""
    fcntl.ioctl(0, termios.TIOCSCTTY, 0)
    signal.signal(signal.SIGINT, signal.SIG_DFL)  # a test run in the background ignores it


@pytest.mark.slow
@pytest.mark.parametrize("end", [b"/exit\n", b"\x04", b"\x03"])
def test_in_a_terminal_it_streams_and_leaves_cleanly(release, end):
    code = f"from openmimo.inference.chat import chat; chat({str(release)!r}, max_tokens=8)"
    master, slave = pty.openpty()
    process = subprocess.Popen(
        [sys.executable, "-c", code],
        stdin=slave, stdout=slave, stderr=slave, start_new_session=True,
        preexec_fn=own_terminal,
    )  # fmt: skip
    os.close(slave)
    seen = b""

    def read_until_prompt(count):
        nonlocal seen
        deadline = time.monotonic() + 60
        while seen.count(b"\n> ") < count:
            assert time.monotonic() < deadline, seen
            seen += os.read(master, 1000)

    try:
        read_until_prompt(1)
        os.write(master, b"the cat \xff\n")
        read_until_prompt(2)
        # Repeated, because a signal between readline's prompt and its wait is seen at the next key.
        deadline = time.monotonic() + 60
        while process.poll() is None and time.monotonic() < deadline:
            os.write(master, end)
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(timeout=5)
        assert process.returncode == 0
        assert b"Traceback" not in seen
    finally:
        process.kill()
        process.wait()
        os.close(master)
