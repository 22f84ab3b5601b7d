"""A byte-level BPE tokenizer of 1,024 entries, designed for copying.

Digits are single tokens. Whole words are entries only if they belong to the tasks' fixed wording. Values, such as
cities and keys, are spelt with short pieces, the same ones after a blank, a quote or a line break, so that the model
copies known and unknown values in the same way.
"""

import json
import re
import string
from collections import Counter
from collections.abc import Iterable
from pathlib import Path

import torch
from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, pre_tokenizers, trainers
from torch import Tensor

SPECIAL = (
    "<|endoftext|>",
    "<|im_start|>",
    "<|im_end|>",
    "<im_start>",
    "<im_end>",
    "<im_patch>",
    "<patch_start>",
    "<patch_end>",
    "<patch_newline>",
)
"""Special tokens: decoding for a reader leaves them out."""

MARKUP = (
    "<think>",
    "</think>",
    "<tool_call>",
    "</tool_call>",
    "<tools>",
    "</tools>",
    "<tool_response>",
    "</tool_response>",
    "<function=",
    "</function>",
    "<parameter=",
    "</parameter>",
)
"""One token each, but no special tokens: the reasoning and tool parsers look for them in the decoded text."""

PHRASES = (
    (
        "\nTo call a function, answer with:\n<tool_call>\n<function=NAME>\n<parameter=KEY>\nVALUE\n</parameter>\n"
        "</function>\n</tool_call>\n"
    ),
    "\n</parameter>\n",
    '{"type": "function", "function": {"name": "',
    '", "description": "',
    '", "parameters": {"type": "object", "properties": {"',
    '": {"type": "string"}',
    '": {"type": "integer"}',
    '": {"type": "number"}',
    '": {"type": "boolean"}',
    '}, "required": ["',
)
"""One token each: what the template and clients' JSON write around every tool, half of the text of a request with
tools. The end of a parameter is one token too, so that a value and the next parameter's name are close together."""

ADDED = PHRASES + MARKUP
"""Longer ones first, because they contain shorter ones."""

SPLIT = (
    r"\.\p{N}|\p{N}|(?:(?<=[\p{L}\p{N}]) )?\p{L}+| \+(?: (?=\p{N}))?| =|, (?=\p{N})|\":|"
    r"[^\s\p{L}\p{N}]+(?: [^\s\p{L}\p{N}]+)*|\s"
)
"""Splits before BPE, by alternative:

* a digit with the point before it, so that the full stop after `31` is not the start of a fraction; a digit;
* a word, with the blank before it if a word or digit precedes that;
* ` + ` and ` =`; `, ` between two numbers, one token in a count;
* `":` alone, so that the end of a JSON key does not depend on its value's type;
* a run of punctuation with the blanks inside it (`", "`); a white-space character.

After other punctuation the blank is a token of its own, so that the token before it does not depend on what follows."""

FRACTIONS = tuple(f".{digit}" for digit in string.digits)
"""Entries regardless of their frequency."""

BLANK, LINE = "Ġ", "Ċ"
"""A blank and a line break in byte-level tokens."""
PIECES = 420
"""Number of BPE merges: enough for common syllables, and few enough that each occurs often in training."""


def _splitter() -> pre_tokenizers.PreTokenizer:
    by_rule = pre_tokenizers.Split(Regex(SPLIT), behavior="isolated")
    return pre_tokenizers.Sequence([by_rule, pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)])


def _merges(words: Iterable[str]) -> list[tuple[str, str]]:
    """BPE merges learnt from `words`, of at most three bytes."""
    bare = Tokenizer(models.BPE())
    bare.pre_tokenizer = _splitter()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=256 + PIECES, initial_alphabet=alphabet, show_progress=False, max_token_length=3
    )
    bare.train_from_iterator(words, trainer)
    return [tuple(pair) for pair in json.loads(bare.to_str())["model"]["merges"]]


def build_tokenizer(texts: Iterable[str], words: Iterable[str], slots: set[str], size: int) -> Tokenizer:
    """A tokenizer of `size` entries: bytes, pieces merged from `words`, then the most frequent words of `texts`.

    Words in `slots`, which is in lower case, get no entry of their own.
    """
    merges = _merges(words)
    vocabulary = sorted(pre_tokenizers.ByteLevel.alphabet())
    known = set(vocabulary)
    vocabulary += [p for p in dict.fromkeys([*(a + b for a, b in merges), *FRACTIONS]) if p not in known]
    known = set(vocabulary)
    splitter, counts = _splitter(), Counter[str]()
    markers = re.compile("|".join(re.escape(t) for t in SPECIAL + ADDED))
    for text in texts:
        for part in markers.split(text):
            counts.update(piece for piece, _ in splitter.pre_tokenize_str(part))
    room = size - len(vocabulary) - len(SPECIAL) - len(ADDED)
    candidates = [p for p in counts if p not in known and len(p) > 1 and p.lstrip(BLANK).lower() not in slots]
    ranked = sorted(candidates, key=lambda p: (-counts[p], p))
    vocabulary += ranked[:room]
    vocabulary += [f"<unused_{i}>" for i in range(room - len(ranked[:room]))]
    model = models.BPE({p: i for i, p in enumerate(vocabulary)}, merges, ignore_merges=True)
    tokenizer = Tokenizer(model)
    tokenizer.pre_tokenizer = splitter
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens([AddedToken(t, special=True, normalized=False) for t in SPECIAL])
    tokenizer.add_tokens([AddedToken(t, special=False, normalized=False) for t in ADDED])
    return tokenizer


def spelling_pieces(tokenizer: Tokenizer) -> Tensor:
    """Ids of the tokens that spell words: merged pieces, and single bytes except digits and ASCII punctuation."""
    merges = json.loads(tokenizer.to_str())["model"]["merges"]
    plain = set(string.digits + string.punctuation) | {BLANK, LINE}
    spelling = (set(pre_tokenizers.ByteLevel.alphabet()) - plain) | {"".join(pair) for pair in merges}
    return torch.tensor(sorted(token_id(tokenizer, piece) for piece in spelling))


def save_tokenizer(tokenizer: Tokenizer, template: str, folder: Path, context: int) -> None:
    """Write the tokenizer and chat template files that transformers and vLLM read."""
    tokenizer.save(str(folder / "tokenizer.json"))
    config = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "eos_token": "<|im_end|>",
        "pad_token": "<|endoftext|>",
        "bos_token": None,
        "unk_token": None,
        "add_bos_token": False,
        "clean_up_tokenization_spaces": False,
        "model_max_length": context,
        "additional_special_tokens": [t for t in SPECIAL if t not in ("<|im_end|>", "<|endoftext|>")],
    }
    (folder / "tokenizer_config.json").write_text(json.dumps(config, indent=2) + "\n")
    (folder / "chat_template.jinja").write_text(template)


def markup_ids(tokenizer: Tokenizer) -> dict[str, int]:
    """Ids of `SPECIAL` and `MARKUP` by token."""
    return {t: token_id(tokenizer, t) for t in SPECIAL + MARKUP}


def token_id(tokenizer: Tokenizer, token: str) -> int:
    """The id of a vocabulary entry. Raises `KeyError` if there is none."""
    found = tokenizer.token_to_id(token)
    if found is None:
        raise KeyError(token)
    return int(found)
