"""A byte-level tokenizer of 1,024 entries, made to be copied from.

Digits stand alone, and whole words are entries only where they belong to the lessons' wording. Whatever fills a slot, a
city or a key, is spelt in pieces, and the same after a blank, a quote or a line break: so all of them are repeated in
one way, piece by piece, and what no lesson taught is repeated as well as what one did.
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
"""Never shown to a reader."""

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
"""One token each, but text to a reader: the parsers look for them in it."""

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
"""What the template and the clients' libraries write around every tool, one token each: half of what a request with
tools is made of. So is the end of a parameter, that the next one's name may stand near the value before it."""

ADDED = PHRASES + MARKUP
"""Longer ones first."""

SPLIT = (
    r"\.\p{N}|\p{N}|(?:(?<=[\p{L}\p{N}]) )?\p{L}+| \+(?: (?=\p{N}))?| =|, (?=\p{N})|\":|"
    r"[^\s\p{L}\p{N}]+(?: [^\s\p{L}\p{N}]+)*|\s"
)
"""A digit, with a point that stands before it (so that the full stop behind `31.` begins no fraction); a word, with its
blank if another word or a digit stands before it; ` + `; ` =`; the comma and blank between two numbers, so that a count
takes one token there; `":` alone, so that JSON's key ends before its value begins; a run of punctuation, blanks inside
it included (`", "`); a white-space character. After any other mark the blank is a token of its own, whether a digit
follows, a letter or a quote: what stands behind a mark is found in one way, and a mark does not say what comes."""

FRACTIONS = tuple(f".{digit}" for digit in string.digits)
"""Entries however often the lessons have them."""

BLANK, LINE = "Ġ", "Ċ"
"""How byte-level tokens write a blank and the end of a line."""
PIECES = 420
"""Merges kept for spelling: enough for common syllables, few enough that each is met often in training."""


def _splitter() -> pre_tokenizers.PreTokenizer:
    by_rule = pre_tokenizers.Split(Regex(SPLIT), behavior="isolated")
    return pre_tokenizers.Sequence([by_rule, pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)])


def _merges(words: Iterable[str]) -> list[tuple[str, str]]:
    """Spelling pieces, learnt from words that no prompt is bound to."""
    bare = Tokenizer(models.BPE())
    bare.pre_tokenizer = _splitter()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=256 + PIECES, initial_alphabet=alphabet, show_progress=False, max_token_length=3
    )
    bare.train_from_iterator(words, trainer)
    return [tuple(pair) for pair in json.loads(bare.to_str())["model"]["merges"]]


def build(texts: Iterable[str], words: Iterable[str], slots: set[str], size: int) -> Tokenizer:
    """A tokenizer of exactly `size` entries: bytes, pieces learnt from `words`, then the commonest words of `texts`.

    Words of `slots`, given in lower case, get no entry of their own.
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
    own = [p for p in counts if p not in known and len(p) > 1 and p.lstrip(BLANK).lower() not in slots]
    ranked = sorted(own, key=lambda p: (-counts[p], p))
    vocabulary += ranked[:room]
    vocabulary += [f"<unused_{i}>" for i in range(room - len(ranked[:room]))]
    model = models.BPE({p: i for i, p in enumerate(vocabulary)}, merges, ignore_merges=True)
    tokenizer = Tokenizer(model)
    tokenizer.pre_tokenizer = splitter
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens([AddedToken(t, special=True, normalized=False) for t in SPECIAL])
    tokenizer.add_tokens([AddedToken(t, special=False, normalized=False) for t in ADDED])
    return tokenizer


def pieces(tokenizer: Tokenizer) -> Tensor:
    """Ids of what words are spelt with: what merges make, and single bytes but for digits and ASCII punctuation."""
    merges = json.loads(tokenizer.to_str())["model"]["merges"]
    plain = set(string.digits + string.punctuation) | {BLANK, LINE}
    spelt = (set(pre_tokenizers.ByteLevel.alphabet()) - plain) | {"".join(pair) for pair in merges}
    return torch.tensor(sorted(token_id(tokenizer, piece) for piece in spelt))


def write(tokenizer: Tokenizer, template: str, folder: Path, context: int) -> None:
    """Save in the form transformers and vLLM read."""
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
    """Ids of everything in `SPECIAL` and `MARKUP`."""
    return {t: token_id(tokenizer, t) for t in SPECIAL + MARKUP}


def token_id(tokenizer: Tokenizer, token: str) -> int:
    """The id of one token of the vocabulary. Raises `KeyError` for any other text."""
    found = tokenizer.token_to_id(token)
    if found is None:
        raise KeyError(token)
    return int(found)
