"""Text to token ids, through the ``tokenizers`` library."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from spatile.inference.files import read_json
from spatile.sparsity import write_atomically

__all__ = ["TextTokenizer", "copy_tokenizer", "load_tokenizer", "tokenizer_limit"]

_FILES = (
    "tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "vocab.txt",
    "vocab.json", "merges.txt",
)  # fmt: skip


class TextTokenizer:
    """A tokenizer that cuts at any length. Thread-safe."""

    def __init__(self, tokenizer: Any, *, typed: bool = True) -> None:
        tokenizer.no_padding()
        tokenizer.no_truncation()
        self._tokenizer, self._typed = tokenizer, typed
        self._truncating: dict[int, Any] = {}

    def encode(
        self, texts: Sequence[str], pairs: Sequence[str] | None, limit: int
    ) -> tuple[list[Any], list[list[int]]]:
        """``tokenizers``' encodings, special tokens added, of at most ``limit`` tokens, and which
        text each token belongs to: zeros where the model is not to know.

        Raises ValueError where texts and pairs differ in count, only special tokens fit, or a text
        is no Unicode; TypeError for one that is no string.
        """
        if isinstance(texts, str):
            raise TypeError("Encoder: texts is one string, expected a list of them")
        if pairs is not None and len(pairs) != len(texts):
            raise ValueError(f"Encoder: pairs has {len(pairs)} entries, expected {len(texts)}")
        batch = list(texts) if pairs is None else list(zip(texts, pairs, strict=True))
        tokenizer = self._cutting_at(limit, pairs is not None)
        try:
            found: list[Any] = tokenizer.encode_batch(batch)
        except TypeError:
            _check_texts("texts", texts)
            _check_texts("pairs", pairs or ())
            raise
        return found, [e.type_ids if self._typed else [0] * len(e.ids) for e in found]

    def _cutting_at(self, limit: int, paired: bool) -> Any:
        """A copy that cuts at ``limit``: cutting is a state of a tokenizer."""
        tokenizer = self._tokenizer
        special = tokenizer.num_special_tokens_to_add(paired)
        if limit <= special:
            raise ValueError(
                f"Encoder: max_tokens is {limit}, expected more than the {special} special tokens"
            )
        if limit not in self._truncating:
            copy = type(tokenizer).from_str(tokenizer.to_str())
            copy.enable_truncation(limit)
            self._truncating[limit] = copy
        return self._truncating[limit]


def _check_texts(name: str, texts: Sequence[str]) -> None:
    """Says which of them no tokenizer can read, as the library does not."""
    for i, text in enumerate(texts):
        if not isinstance(text, str):
            raise TypeError(f"Encoder: {name}[{i}] is a {type(text).__name__}, expected a string")
        try:
            text.encode()
        except UnicodeEncodeError as error:
            raise ValueError(
                f"Encoder: {name}[{i}] holds {text[error.start]!a} (character {error.start}), half "
                f"of a character, expected Unicode"
            ) from None


def _settings(folder: Path) -> dict[str, Any]:
    path = folder / "tokenizer_config.json"
    return read_json(path) if path.exists() else {}


def _whole(folder: Path) -> Any:
    from tokenizers import Tokenizer

    return Tokenizer.from_file(str(folder / "tokenizer.json"))


def _word_piece(folder: Path) -> Any:
    from tokenizers import BertWordPieceTokenizer

    settings = _settings(folder)
    return BertWordPieceTokenizer(
        str(folder / "vocab.txt"),
        lowercase=bool(settings.get("do_lower_case", True)),
        strip_accents=settings.get("strip_accents"),
        handle_chinese_chars=bool(settings.get("tokenize_chinese_chars", True)),
    )._tokenizer


def _byte_level_bpe(folder: Path) -> Any:
    from tokenizers import ByteLevelBPETokenizer, processors

    wrapped = ByteLevelBPETokenizer(str(folder / "vocab.json"), str(folder / "merges.txt"))
    tokenizer = wrapped._tokenizer
    ids = {token: tokenizer.token_to_id(token) for token in ("<s>", "</s>")}
    tokenizer.post_processor = processors.RobertaProcessing(
        ("</s>", ids["</s>"]), ("<s>", ids["<s>"]), trim_offsets=True, add_prefix_space=False
    )
    return tokenizer


def load_tokenizer(folder: Path) -> TextTokenizer | None:
    """The tokenizer of a model folder, or None where it has none.

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
    inputs = _settings(folder).get("model_input_names")
    return TextTokenizer(tokenizer, typed=inputs is None or "token_type_ids" in inputs)


def copy_tokenizer(source: Path | None, folder: Path) -> None:
    """Copy the tokenizer's files that are in ``source`` to ``folder``."""
    if source is None:
        return
    for name in _FILES:
        file = source / name
        if file.exists() and file.resolve() != (folder / name).resolve():
            write_atomically(folder / name, file.read_bytes())


def tokenizer_limit(folder: Path) -> int | None:
    """``model_max_length`` of tokenizer_config.json, where it is a real limit."""
    limit = _settings(folder).get("model_max_length")
    # Hugging Face writes 10**30 for "no limit".
    return limit if isinstance(limit, int) and 0 < limit < 10**9 else None
