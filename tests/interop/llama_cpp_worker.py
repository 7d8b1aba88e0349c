"""Answers a question about one GGUF file with llama.cpp; runs in an environment of its own.

It reads from stdin, and writes to stdout, one JSON object:

    {"model": PATH, "texts": [...], "prompts": [[id, ...], ...], "max_new_tokens": N}
    {"ids": [[...], ...], "answers": [[...], ...], "template": "..."}

An answer ends with the first token that llama.cpp takes for an end. All arithmetic that llama.cpp
lets one choose is float32.
"""

import itertools
import json
import sys

import llama_cpp

GGML_TYPE_F32 = 0

question = json.load(sys.stdin)
llama = llama_cpp.Llama(
    question["model"],
    n_ctx=512,
    n_threads=1,
    n_threads_batch=1,
    type_k=GGML_TYPE_F32,  # the cache; float16 by default
    type_v=GGML_TYPE_F32,
    flash_attn=False,
    verbose=False,
)


def answer(prompt: list[int]) -> list[int]:
    """The greedy continuation."""
    llama.reset()
    tokens: list[int] = []
    generated = llama.generate(prompt, temp=0.0)
    for token in itertools.islice(generated, question["max_new_tokens"]):
        tokens.append(token)
        if llama_cpp.llama_vocab_is_eog(llama_cpp.llama_model_get_vocab(llama.model), token):
            break
    return tokens


json.dump(
    {
        "ids": [
            llama.tokenize(text.encode(), add_bos=True, special=True) for text in question["texts"]
        ],
        "answers": [answer(prompt) for prompt in question["prompts"]],
        "template": llama.metadata.get("tokenizer.chat_template"),
    },
    sys.stdout,
)
