"""Text to token ids, through the ``tokenizers`` library."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from spatile.inference.files import read_json

__all__ = ["load_tokenizer", "tokenizer_limit"]


def _whole(folder: Path) -> Any:
    from tokenizers import Tokenizer

    return Tokenizer.from_file(str(folder / "tokenizer.json"))


def _word_piece(folder: Path) -> Any:
    from tokenizers import BertWordPieceTokenizer

    settings = folder / "tokenizer_config.json"
    lowercase = read_json(settings).get("do_lower_case", True) if settings.exists() else True
    return BertWordPieceTokenizer(str(folder / "vocab.txt"), lowercase=bool(lowercase))._tokenizer


def _byte_level_bpe(folder: Path) -> Any:
    from tokenizers import ByteLevelBPETokenizer, processors

    wrapped = ByteLevelBPETokenizer(str(folder / "vocab.json"), str(folder / "merges.txt"))
    tokenizer = wrapped._tokenizer
    ids = {token: tokenizer.token_to_id(token) for token in ("<s>", "</s>")}
    tokenizer.post_processor = processors.RobertaProcessing(
        ("</s>", ids["</s>"]), ("<s>", ids["<s>"]), trim_offsets=True, add_prefix_space=False
    )
    return tokenizer


def load_tokenizer(folder: Path) -> Any | None:
    """The tokenizer of a model folder without padding or truncation, or None where it has none.

    Reads tokenizer.json, or vocab.txt (WordPiece), or vocab.json and merges.txt (byte-level BPE).
    Raises ValueError naming the file where one is damaged.
    """
    readers: tuple[tuple[tuple[str, ...], Callable[[Path], Any]], ...] = (
        (("tokenizer.json",), _whole),
        (("vocab.txt",), _word_piece),
        (("vocab.json", "merges.txt"), _byte_level_bpe),
    )
    for names, read in readers:
        if all((folder / name).exists() for name in names):
            try:
                tokenizer = read(folder)
            except Exception as error:  # the library raises plain Exception, and others
                raise ValueError(
                    f"{folder / names[0]}: not a tokenizer ({type(error).__name__}: {error})"
                ) from None
            break
    else:
        return None
    tokenizer.no_padding()
    tokenizer.no_truncation()
    return tokenizer


def tokenizer_limit(folder: Path) -> int | None:
    """``model_max_length`` of tokenizer_config.json, where it is a real limit."""
    path = folder / "tokenizer_config.json"
    if not path.exists():
        return None
    limit = read_json(path).get("model_max_length")
    # Hugging Face writes 10**30 for "no limit".
    return limit if isinstance(limit, int) and 0 < limit < 10**9 else None
