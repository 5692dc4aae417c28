"""What was kept, as data and as a picture: words as the text has them, dropped ones struck out."""

from __future__ import annotations

import json
import re
from html.parser import HTMLParser
from pathlib import Path
from typing import Any
from unicodedata import category, combining, east_asian_width

import numpy as np
import pytest
from tokenizers import Tokenizer, models, pre_tokenizers, processors

from spatile.inference import Encoder, Explanation
from spatile.inference.cost import Amount, Cost, LayerCost, Parts
from spatile.inference.explain import LayerView, Piece, Word
from spatile.sparsity import LayerStructure, Schedule
from spatile.torch import apply_structure, structure_of

from .conftest import PAIRS, TEXTS, WORDS, make_model, save, write_tokenizer
from .test_structure import random_structure

TOKENS = {n: Schedule.per_layer([1, 0.6, 0.3][:n]) for n in (2, 3)}
HEADS = {n: Schedule.per_layer([1, 0.75, 0.5][:n]) for n in (2, 3)}
ESCAPE = "\x1b["
PIECES = [*WORDS, "un", "##believ", "##able"]


def byte_level_tokenizer(folder: Path) -> None:
    """RoBERTa's kind: "Ġ" is a space before a word, and a rare character is several bytes."""
    letters = sorted({*"Ġcatdog", *pre_tokenizers.ByteLevel(add_prefix_space=False)
                      .pre_tokenize_str("é\u200d")[0][0]})  # fmt: skip
    merges = [("c", "a"), ("ca", "t"), ("d", "o"), ("Ġ", "do"), ("Ġdo", "g")]
    names = ["<s>", "</s>", *letters, *("".join(m) for m in merges)]
    tokenizer = Tokenizer(models.BPE({name: i for i, name in enumerate(names)}, merges))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.post_processor = processors.RobertaProcessing(
        ("</s>", 1), ("<s>", 0), trim_offsets=True, add_prefix_space=False
    )
    tokenizer.save(str(folder / "tokenizer.json"))


def encoder_of(folder: Path, family: str = "bert", **schedules: Any) -> Encoder:
    return Encoder.load(save(make_model(family), folder), **schedules)


# ---- the data


def test_it_is_the_run_that_predict_makes(family: str, tmp_path: Path) -> None:
    n = 3 if family == "bert" else 2
    encoder = encoder_of(tmp_path, family, tokens=TOKENS[n], heads=HEADS[n])
    for text, pair in zip(TEXTS, PAIRS, strict=True):
        found, predicted = encoder.explain(text, pair), encoder.predict([text], [pair])
        ids, types = encoder.tokenize([text], [pair])
        kept = encoder.run(ids, types, first_only=True).kept
        assert len(found.tokens) == len(ids[0])
        for i, view in enumerate(found.layers):
            assert list(view.tokens) == kept.positions(i, 0).tolist()
            assert found.kept[i].nonzero()[0].tolist() == kept.positions(i, 0).tolist()
        np.testing.assert_array_equal(found.heads, kept.heads[:, 0])
        assert found.cost == predicted.cost
        assert found.predictions is not None
        np.testing.assert_array_equal(found.predictions.logits, predicted.logits)
        data = json.loads(json.dumps(found.to_json()))
        assert [row["tokens"] for row in data["layers"]] == [list(v.tokens) for v in found.layers]
        assert data["label"] == (None if predicted.labels is None else predicted.labels[0])


def test_layers_and_heads_of_a_cut_model_are_numbered_as_in_the_dense_one(tmp_path: Path) -> None:
    model = make_model("bert")
    left = random_structure(model, seed=1)
    apply_structure(model, left)
    found = Encoder.load(save(model, tmp_path)).explain(TEXTS[0])
    assert [view.layer for view in found.layers] == [kept.layer for kept in left.layers]
    assert [view.heads for view in found.layers] == [kept.heads for kept in left.layers]
    for view, kept in zip(found.layers, left.layers, strict=True):
        assert set(view.lacks) == set(range(4)) - set(kept.heads)


def test_heads_that_a_layer_lacks_are_not_shown_as_dropped(tmp_path: Path) -> None:
    model = make_model("bert")
    whole = structure_of(model)
    layers = [
        LayerStructure(i, heads, whole.layers[0].neurons)
        for i, heads in enumerate([(0, 1, 3), (2, 3), (0, 1, 2, 3)])
    ]
    apply_structure(model, whole.with_layers(layers))
    found = Encoder.load(save(model, tmp_path), heads=HEADS[3]).explain(TEXTS[0])
    dropped = sorted({0, 1, 2, 3} - set(found.layers[2].heads))
    assert len(dropped) == 2
    text = found.to_text(colour=False)
    bars = [line.split()[2] for line in text.splitlines() if line.startswith("    ")]
    assert bars[:2] == ["||x|", "xx||"]
    assert [i for i, sign in enumerate(bars[2]) if sign == "-"] == dropped
    assert f"heads dropped: {dropped[0]}, {dropped[1]} before layer 2" in text
    assert "heads marked x: the layer does not have them" in text
    assert found.to_html().count("<i>x</i>") == 3
    assert [row["lacks"] for row in found.to_json()["layers"]] == [[2], [0, 1], []]


def test_a_protected_word_stays(tmp_path: Path) -> None:
    encoder = encoder_of(tmp_path, tokens=Schedule.per_layer([1, 0.2, 0.2]))
    for position in range(1, 7):
        kept = encoder.explain("The cat sat on the mat.", protect=[position]).layers[-1].tokens
        assert {0, position} <= set(kept)


# ---- words


def test_word_pieces_are_joined_and_spelled_as_in_the_text(tmp_path: Path) -> None:
    encoder_of(tmp_path)
    write_tokenizer(tmp_path, PIECES)
    found = Encoder.load(tmp_path).explain("Unbelievable:  the CAT.", "\u2603 it")
    assert [w.text for w in found.words] == [
        "[CLS]", "Unbelievable", ":", "the", "CAT", ".", "[SEP]", "\u2603", "it", "[SEP]",
    ]  # fmt: skip
    assert [p.text for p in found.words[1].pieces] == ["Un", "believ", "able"]
    assert [w.space for w in found.words] == [
        True, True, False, True, True, False, True, True, True, True,
    ]  # fmt: skip
    assert [w.segment for w in found.words if not w.special] == [0, 0, 0, 0, 0, 1, 1]
    positions = [p for w in found.words for p in w.positions]
    assert positions == list(range(len(found.tokens)))
    assert found.kept_words() == ("Unbelievable", ":", "the", "CAT", ".", "\u2603", "it")
    assert "[CLS] Unbelievable: the CAT. [SEP] \u2603 it [SEP]" in found.to_text()


def test_byte_level_pieces_are_joined(tmp_path: Path) -> None:
    encoder_of(tmp_path, "roberta")
    byte_level_tokenizer(tmp_path)
    found = Encoder.load(tmp_path).explain("cat dogé  cat", "dog")
    assert "Ġdog" in found.tokens
    assert [w.text for w in found.words] == [
        "<s>", "cat", "dogé", "␣", "cat", "</s>", "</s>", "dog", "</s>",
    ]  # fmt: skip
    assert [p for w in found.words for p in w.positions] == list(range(len(found.tokens)))
    accent = found.words[2].pieces[-1]
    assert accent.text == "é"
    assert len(accent.positions) == 2, "two bytes, one character"


def test_accents_that_the_tokenizer_takes_off_are_shown(tmp_path: Path) -> None:
    """Each as a mark of its own behind its letter: at a piece's end, inside a word, at its end."""
    encoder_of(tmp_path)
    write_tokenizer(tmp_path, PIECES)
    text = "Un\u0301believa\u0301ble\u0301, the ca\u0301t\u0323\u0301"
    found = Encoder.load(tmp_path).explain(text, "it\u0301")
    assert [p.text for p in found.words[1].pieces] == [
        "Un\u0301", "believ", "a\u0301ble\u0301",
    ]  # fmt: skip
    assert found.kept_words() == (
        "Un\u0301believa\u0301ble\u0301", ",", "the", "ca\u0301t\u0323\u0301", "it\u0301",
    )  # fmt: skip
    assert not found.words[2].space
    assert f"[CLS] {text} [SEP] it\u0301 [SEP]" in found.to_text(width=200)


def test_what_the_model_cannot_read_is_not_shown(tmp_path: Path) -> None:
    found = encoder_of(tmp_path).explain("the cat " * 100)
    assert found.truncated
    assert len(found.tokens) == 96
    assert "[SEP] …" in found.to_text()
    assert "…" in found.to_html()
    assert not encoder_of(tmp_path).explain("the cat").truncated


@pytest.mark.parametrize(
    "text",
    ["\U0001f468\u200d\U0001f469\u200d\U0001f467", "\u0645\u06cc\u200c\u062e", "un\u200cbeliev"],
)
def test_joiners_are_shown(text: str, tmp_path: Path) -> None:
    """Families of emoji, and Persian, whose words the tokenizer joins."""
    encoder_of(tmp_path)
    write_tokenizer(tmp_path, PIECES)
    found = Encoder.load(tmp_path).explain(f"the {text}. cat")
    assert found.kept_words() == ("the", text, ".", "cat")
    assert f"[CLS] the {text}. cat [SEP]" in found.to_text()
    assert text in found.to_html()


def test_joiners_alone_are_seen(tmp_path: Path) -> None:
    encoder_of(tmp_path, "roberta")
    byte_level_tokenizer(tmp_path)
    found = Encoder.load(tmp_path).explain("cat \u200d dog")
    assert [w.text for w in found.words] == ["<s>", "cat", "␣", "dog", "</s>"]


def test_control_characters_reach_no_terminal(tmp_path: Path) -> None:
    found = encoder_of(tmp_path).explain("the \x1b[31mcat\x07 sat\u202e")
    assert not re.search("[\x1b\x07\u202e]", found.to_text(colour=False))
    assert not re.search("[\x1b\x07\u202e]", found.to_html())
    model = make_model("bert")
    model.config.id2label = dict.fromkeys(range(3), "good\x1b[31m")
    named = Encoder.load(save(model, tmp_path)).explain("the cat")
    assert named.to_text(colour=False).startswith("prediction: good\ufffd[31m (")
    assert "\x1b" not in named.to_html()


# ---- pictures


def words_of(*texts: str) -> tuple[Word, ...]:
    """A word of each text, "~" for no space before it; pieces are separated by a bar."""
    words, at = [], 0
    for text in texts:
        parts = text.lstrip("~").split("|")
        pieces = tuple(Piece(part, (at + i,)) for i, part in enumerate(parts))
        words.append(Word(pieces, text.startswith("["), not text.startswith("~"), 0))
        at += len(parts)
    return tuple(words)


@pytest.fixture
def small() -> Explanation:
    """Three layers of four heads on a sentence of eight tokens."""
    words = words_of("[CLS]", "a", "un|real|istic", "movie", "~!", "[SEP]")
    full = Parts(ffn=Amount(1_000_000, 8))
    kept = [tuple(range(8)), (0, 2, 3, 5, 6), (0, 3)]
    heads = [(0, 1, 2, 3), (0, 1, 3), (1,)]
    work = [1.0, 0.5, 0.25]
    cost = Cost(
        tuple(LayerCost(i, Parts(ffn=Amount(int(w * 1e6), 8)), full) for i, w in enumerate(work))
    )
    return Explanation(
        text="a unrealistic movie!",
        pair=None,
        tokens=("[CLS]", "a", "un", "##real", "##istic", "movie", "!", "[SEP]"),
        words=words,
        layers=tuple(LayerView(i, kept[i], heads[i], work[i]) for i in range(3)),
        n_heads=4,
        cost=cost,
        token_schedule=Schedule.linear(0.5),
        head_schedule=Schedule.linear(0.5),
    )


def test_plain_text(small: Explanation) -> None:
    assert small.to_text(colour=False, width=100).splitlines() == [
        "layer  tokens  heads     work",
        "    0     8/8  |||| 4/4  100%  [CLS] a unrealistic movie! [SEP]",
        "    1     5/8  ||-| 3/4   50%  [CLS] -a- unreal-istic- movie! -[SEP]-",
        "    2     2/8  -|·- 1/4   25%  [CLS] · -un-real· -movie- -!- ·",
        "-word- is dropped before this layer, each · was earlier",
        "work: share of the dense layer's; its FFN leaves out what the next layer drops",
        "heads dropped: 2 before layer 1; 0, 3 before layer 2",
        "1.75 M of 3.00 M multiply-adds in the layers: 1.71x less",
    ]


def test_a_terminal_shows_the_whole_sentence_struck_out(small: Explanation) -> None:
    lines = small.to_text(colour=True, width=100).splitlines()
    plain = [re.sub(r"\x1b\[[0-9;]*m", "", line) for line in lines]
    assert all(line.endswith("[CLS] a unrealistic movie! [SEP]") for line in plain[1:4])
    assert "\x1b[9;31mistic\x1b[0m" in lines[2]
    assert "\x1b[2;9mistic\x1b[0m" in lines[3]


@pytest.mark.parametrize("width", [20, 40, 60, 200])
@pytest.mark.parametrize("colour", [False, True])
def test_lines_fit(tmp_path: Path, width: int, colour: bool) -> None:
    encoder = encoder_of(tmp_path, tokens=TOKENS[3], heads=HEADS[3])
    lines = encoder.explain(TEXTS[2]).to_text(colour=colour, width=width).splitlines()
    shown = [re.sub(r"\x1b\[[0-9;]*m", "", line) for line in lines]
    assert max(len(line) for line in shown) <= max(width, 36)


def columns_of(line: str) -> int:
    """What wcwidth says: two for a wide character, none for a mark or a joiner."""
    return sum(
        0 if combining(c) or category(c) == "Cf" else 1 + (east_asian_width(c) in "WF")
        for c in re.sub(r"\x1b\[[0-9;]*m", "", line)
    )


def dropping(words: tuple[Word, ...], *kept: set[int]) -> Explanation:
    """A layer for each of ``kept``, of 12 heads of which it drops the first that is left."""
    n = sum(len(word.positions) for word in words)
    parts = Parts(ffn=Amount(1, 1))
    views = [
        LayerView(i, tuple(sorted(set(range(n)) & own)), tuple(range(i, 12)), 0.5)
        for i, own in enumerate(kept)
    ]
    return Explanation(
        text="", pair=None, tokens=("a",) * n, words=words, layers=tuple(views), n_heads=12,
        cost=Cost(tuple(LayerCost(i, parts, parts) for i in range(len(kept)))),
        token_schedule=Schedule.linear(0.5), head_schedule=Schedule.linear(0.5),
    )  # fmt: skip


ALL = set(range(900))
LONG = {
    "words": words_of("[CLS]", *["movie"] * 600, "[SEP]"),
    "chinese": words_of("[CLS]", *(f"~{c}" for c in "這部電影，很好看。" * 40), "[SEP]"),
    "unknown": words_of("[CLS]", *["這部電影，很好看" * 20] * 5, "[SEP]"),
    "marks": words_of("[CLS]", *["~!"] * 300, "[SEP]"),
    "emoji": words_of("[CLS]", *["~\U0001f468\u200d\U0001f469\u200d\U0001f467"] * 60, "[SEP]"),
}


@pytest.mark.parametrize("colour", [False, True])
@pytest.mark.parametrize("width", [60, 80, 100])
@pytest.mark.parametrize("name", list(LONG))
def test_no_line_is_wider_than_asked(name: str, width: int, colour: bool) -> None:
    found = dropping(LONG[name], *[ALL - set(range(1, 80 * i)) for i in range(12)])
    lines = found.to_text(colour=colour, width=width).splitlines()
    assert max(map(columns_of, lines)) <= width
    assert any(line.startswith("heads dropped: 0 before layer 1; 1") for line in lines)
    assert any(line.startswith("  ") and "before layer 11" in line for line in lines[-5:])


def test_lines_break_where_they_may() -> None:
    """Between wide characters, though not before their punctuation, and between dots."""
    gone = [ALL - set(range(1, 300))] * 2
    found = dropping(LONG["chinese"], ALL, *gone).to_text(colour=False, width=60).splitlines()
    whole, after = (
        [line.strip() for line in found[i + 1 : i + 5]]
        for i, line in enumerate(found)
        if line.startswith(("    0", "    2"))
    )
    assert whole[1].startswith("看。這部電影，很好看。這部電影")
    assert all(columns_of(line) > 60 - 4 - 4 for line in whole)
    assert after[0].startswith("[CLS] ····")
    assert all("·" in line or "影" in line for line in after)


def test_escape_codes_are_for_terminals_alone(
    small: Explanation, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("NO_COLOR", raising=False)
    monkeypatch.setenv("TERM", "xterm")
    assert ESCAPE not in str(small)
    assert ESCAPE not in repr(small)
    monkeypatch.setattr("sys.stdout.isatty", lambda: True, raising=False)
    assert ESCAPE in str(small)
    assert ESCAPE in repr(small)
    monkeypatch.setenv("NO_COLOR", "1")
    assert ESCAPE not in str(small)
    assert "-a- unreal-istic-" in str(small)
    monkeypatch.delenv("NO_COLOR")
    monkeypatch.setenv("TERM", "dumb")
    assert ESCAPE not in str(small)


class Strikes(HTMLParser):
    """Collects struck-out text and addresses, and checks that tags close."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.struck: list[str] = []
        self.addresses: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.open.append(tag)
        self.addresses += [v or "" for k, v in attrs if k in ("src", "href")]

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if "s" in self.open:
            self.struck.append(data)


def test_the_html_strikes_out_and_needs_nothing(small: Explanation) -> None:
    html = small._repr_html_()
    checker = Strikes()
    checker.feed(html)
    assert not checker.open
    assert not checker.addresses
    assert [s for s in checker.struck if s != "□"] == [
        "a", "istic", "[SEP]", "a", "un", "istic", "movie", "!", "[SEP]",
    ]  # fmt: skip
    assert checker.struck.count("□") == 1 + 3
    assert "1.71x less" in html
    assert not re.search(r"url\(|@import|<script|http", html)


def test_the_html_is_escaped(tmp_path: Path) -> None:
    encoder = encoder_of(tmp_path, tokens=TOKENS[3])
    html = encoder.explain("<script>alert('x')</script> & the <b>cat</b>").to_html()
    assert "<script" not in html
    assert "<b>" not in html
    assert "&lt;" in html
    assert "&amp;" in html


def test_without_schedules_it_says_so_and_shows_everything(tmp_path: Path) -> None:
    found = encoder_of(tmp_path).explain("The cat sat.")
    assert found.kept.all()
    assert found.heads.all()
    text = found.to_text()
    assert text.count("[CLS] The cat sat. [SEP]") == 3
    assert "no schedules: every layer works on all words and heads" in text
    assert "heads dropped" not in text
    assert "1.00x less" in text
    assert "no schedules" in found.to_html()
    assert "<s>" not in found.to_html()


def test_a_text_that_is_none_is_refused(tmp_path: Path) -> None:
    encoder = encoder_of(tmp_path)
    with pytest.raises(TypeError, match=r"Encoder\.explain: text is a list, expected a string"):
        encoder.explain(["a"])  # type: ignore[arg-type]
    with pytest.raises(TypeError, match=r"Encoder\.explain: pair is a int, expected a string"):
        encoder.explain("a", 3)  # type: ignore[arg-type]
    (tmp_path / "tokenizer.json").unlink()
    with pytest.raises(ValueError, match="no tokenizer in the model's folder"):
        Encoder.load(tmp_path).explain("a")


def test_no_words_at_all(tmp_path: Path) -> None:
    found = encoder_of(tmp_path, tokens=TOKENS[3]).explain("")
    assert [w.text for w in found.words] == ["[CLS]", "[SEP]"]
    assert found.kept_words() == ()
