"""``attn_implementation="spatile"`` and the differentiable ops, against PyTorch's own."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import transformers

from spatile.torch import attention, linear


def padded_batch() -> tuple[Any, Any]:
    """Token ids (3, 11) padded on the right to lengths 11, 7 and 3, and their mask."""
    generator = torch.Generator().manual_seed(2)
    ids = torch.randint(4, 40, (3, 11), generator=generator)
    mask = torch.zeros(3, 11, dtype=torch.long)
    for row, length in enumerate((11, 7, 3)):
        mask[row, :length] = 1
    return ids, mask


def test_padded_batch_equals_its_unpadded_rows(make_bert: Any) -> None:
    model = make_bert(attention="spatile").eval()
    ids, mask = padded_batch()
    with torch.no_grad():
        together = model.bert(input_ids=ids, attention_mask=mask).last_hidden_state
        for row in range(3):
            length = int(mask[row].sum())
            alone = model.bert(input_ids=ids[row : row + 1, :length]).last_hidden_state
            torch.testing.assert_close(together[row, :length], alone[0], rtol=1e-4, atol=1e-5)
        unmasked = model.bert(input_ids=ids).last_hidden_state
    assert (unmasked[2, :3] - together[2, :3]).abs().max() > 1e-3


@pytest.mark.parametrize("side", ["left", "right"])
def test_forward_and_backward_equal_eager(make_bert: Any, side: str) -> None:
    ids, mask = padded_batch()
    if side == "left":
        mask = mask.flip(1)
    results = []
    for name in ("eager", "spatile"):
        model = make_bert(attention=name).eval()
        out = model(input_ids=ids, attention_mask=mask, labels=torch.tensor([0, 1, 1]))
        out.loss.backward()
        grads = {n: p.grad for n, p in model.named_parameters()}
        results.append((out.logits.detach(), grads))
    (eager, eager_grads), (ours, our_grads) = results
    torch.testing.assert_close(ours, eager, rtol=1e-4, atol=1e-5)
    assert eager_grads["bert.encoder.layer.0.attention.self.query.weight"].abs().max() > 1e-6
    for name, grad in eager_grads.items():
        torch.testing.assert_close(our_grads[name], grad, rtol=1e-3, atol=1e-6, msg=name)


@pytest.mark.parametrize("family", ["roberta", "distilbert"])
def test_other_encoders(family: str) -> None:
    if family == "roberta":
        config = transformers.RobertaConfig(
            vocab_size=40,
            hidden_size=32,
            num_hidden_layers=1,
            num_attention_heads=2,
            intermediate_size=64,
            max_position_embeddings=20,
        )
        kind = transformers.RobertaModel
    else:
        config = transformers.DistilBertConfig(
            vocab_size=40, dim=32, n_layers=1, n_heads=2, hidden_dim=64, max_position_embeddings=20
        )
        kind = transformers.DistilBertModel
    ids, mask = padded_batch()
    outputs = []
    for name in ("eager", "spatile"):
        config._attn_implementation = name
        torch.manual_seed(0)
        with torch.no_grad():
            outputs.append(kind(config).eval()(ids, attention_mask=mask).last_hidden_state)
    torch.testing.assert_close(
        outputs[1][mask.bool()], outputs[0][mask.bool()], rtol=1e-4, atol=1e-5
    )


def gpt2(attention: str) -> Any:
    config = transformers.GPT2Config(
        vocab_size=40,
        n_embd=32,
        n_layer=2,
        n_head=2,
        n_positions=32,
        bos_token_id=0,
        eos_token_id=1,
    )
    config._attn_implementation = attention
    torch.manual_seed(0)
    return transformers.GPT2LMHeadModel(config).eval()


def test_causal_model_padded_and_generating() -> None:
    ids, mask = padded_batch()
    ours, eager = gpt2("spatile"), gpt2("eager")
    with torch.no_grad():
        for given in (None, mask):
            a = ours(ids, attention_mask=given).logits
            b = eager(ids, attention_mask=given).logits
            valid = mask.bool() if given is not None else torch.ones_like(mask).bool()
            torch.testing.assert_close(a[valid], b[valid], rtol=1e-4, atol=1e-5)
        generated = [
            m.generate(ids[:1], max_new_tokens=6, do_sample=False, pad_token_id=1)
            for m in (ours, eager)
        ]
    assert torch.equal(generated[0], generated[1])


def test_a_padding_mask_of_one_row_leaves_a_decoder_causal() -> None:
    ids, mask = padded_batch()
    model = gpt2("spatile")
    with torch.no_grad():
        expected = model(ids, attention_mask=mask).logits
        given = model(ids, attention_mask=mask[:, None, None].bool()).logits
    valid = mask.bool()
    torch.testing.assert_close(given[valid], expected[valid], rtol=1e-4, atol=1e-5)


def test_grouped_query_heads() -> None:
    config = transformers.LlamaConfig(
        vocab_size=40,
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=1,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=32,
    )
    ids, mask = padded_batch()
    outputs = []
    for name in ("eager", "spatile"):
        config._attn_implementation = name
        torch.manual_seed(0)
        with torch.no_grad():
            outputs.append(transformers.LlamaModel(config).eval()(ids, attention_mask=mask)[0])
    torch.testing.assert_close(
        outputs[1][mask.bool()], outputs[0][mask.bool()], rtol=1e-4, atol=1e-5
    )


def test_four_dimensional_float_mask(make_bert: Any) -> None:
    ids, mask = padded_batch()
    added = torch.zeros(3, 1, 11, 11).masked_fill(mask[:, None, None] == 0, torch.finfo().min)
    added[:, :, :, 0] += 0.7
    outputs = []
    for name in ("eager", "spatile"):
        model = make_bert(attention=name).eval()
        with torch.no_grad():
            outputs.append(model.bert(input_ids=ids, attention_mask=added).last_hidden_state)
    torch.testing.assert_close(outputs[1], outputs[0], rtol=1e-4, atol=1e-5)


def test_dropout_follows_manual_seed(make_bert: Any) -> None:
    model = make_bert(
        attention="spatile", attention_probs_dropout_prob=0.5, hidden_dropout_prob=0.0
    )
    model.train()
    ids, mask = padded_batch()
    logits = []
    for seed in (5, 5, 6):
        torch.manual_seed(seed)
        logits.append(model(input_ids=ids, attention_mask=mask).logits.detach())
    assert torch.equal(logits[0], logits[1])
    assert not torch.equal(logits[0], logits[2])
    model.eval()
    with torch.no_grad():
        still = [model(input_ids=ids, attention_mask=mask).logits for _ in range(2)]
    assert torch.equal(*still)


def test_dropout_gradient_is_that_of_the_forward_pass() -> None:
    torch.manual_seed(0)
    q, k, v = (torch.randn(1, 5, 2, 8) for _ in range(3))
    direction = torch.randn_like(v)

    def loss(values: Any) -> Any:
        return (attention(q, k, values, dropout=0.4, seed=11) ** 2).sum()

    values = v.clone().requires_grad_()
    loss(values).backward()
    step = 1e-2
    numeric = (loss(v + step * direction) - loss(v - step * direction)) / (2 * step)
    torch.testing.assert_close((values.grad * direction).sum(), numeric, rtol=1e-3, atol=1e-3)


def test_output_attentions_names_eager(make_bert: Any) -> None:
    model = make_bert(attention="spatile").eval()
    with pytest.raises(ValueError, match="eager"):
        model(input_ids=torch.ones(1, 4, dtype=torch.long), output_attentions=True)


def test_unsupported_features_are_refused(make_bert: Any) -> None:
    model = make_bert(attention="spatile").eval()
    with pytest.raises(NotImplementedError, match="softcap"):
        model(input_ids=torch.ones(1, 4, dtype=torch.long), softcap=30.0)


def test_autocast_runs_in_bf16(make_bert: Any) -> None:
    ids, mask = padded_batch()
    model = make_bert(attention="spatile").eval()
    exact = model(input_ids=ids, attention_mask=mask).logits
    with torch.autocast("cpu", torch.bfloat16):
        out = model(input_ids=ids, attention_mask=mask, labels=torch.tensor([0, 1, 1]))
    out.loss.backward()
    torch.testing.assert_close(out.logits.float(), exact, rtol=0.05, atol=0.05)
    assert model.bert.encoder.layer[0].attention.self.key.weight.grad.dtype == torch.float32


def test_attention_reads_strided_tensors_and_gives_their_gradient() -> None:
    torch.manual_seed(0)
    fused = torch.randn(2, 6, 3, 4, 8, requires_grad=True)
    q, k, v = fused.unbind(2)
    attention(q, k, v, causal=True).square().sum().backward()
    ours, fused.grad = fused.grad, None
    q, k, v = (t.transpose(1, 2) for t in fused.unbind(2))
    out = torch.nn.functional.scaled_dot_product_attention(q, k, v, is_causal=True)
    out.square().sum().backward()
    torch.testing.assert_close(ours, fused.grad, rtol=1e-4, atol=1e-5)


def test_bias_gets_its_gradient() -> None:
    torch.manual_seed(0)
    q, k, v = (torch.randn(2, 5, 2, 8) for _ in range(3))
    grads = []
    for name in ("ours", "torch"):
        torch.manual_seed(1)
        bias = torch.randn(1, 2, 5, 5, requires_grad=True)
        if name == "ours":
            out = attention(q, k, v, bias=bias)
        else:
            out = torch.nn.functional.scaled_dot_product_attention(
                *(t.transpose(1, 2) for t in (q, k, v)), attn_mask=bias
            ).transpose(1, 2)
        out.square().sum().backward()
        grads.append(bias.grad)
    torch.testing.assert_close(grads[0], grads[1], rtol=1e-4, atol=1e-5)


def test_packed_sequences_do_not_see_each_other() -> None:
    torch.manual_seed(0)
    q = torch.randn(9, 2, 8, requires_grad=True)
    offsets = torch.tensor([0, 4, 9])
    attention(q, q, q, offsets=offsets).square().sum().backward()
    packed, q.grad = q.grad, None
    for start, end in ((0, 4), (4, 9)):
        part = q[None, start:end]
        attention(part, part, part).square().sum().backward()
    torch.testing.assert_close(packed, q.grad, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("needs", [(True, True, True), (False, True, False), (True, False, True)])
def test_linear_gradients(needs: tuple[bool, bool, bool]) -> None:
    torch.manual_seed(0)
    shapes = ((3, 5, 7), (4, 7), (4,))
    x, w, bias = (torch.randn(s, requires_grad=n) for s, n in zip(shapes, needs, strict=True))
    out = linear(x, w, bias=bias)
    expected = torch.nn.functional.linear(x, w, bias)
    torch.testing.assert_close(out, expected, rtol=1e-5, atol=1e-5)
    inputs = [t for t in (x, w, bias) if t.requires_grad]
    ours = torch.autograd.grad(out.square().sum(), inputs)
    theirs = torch.autograd.grad(expected.square().sum(), inputs)
    for a, b in zip(ours, theirs, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5)


def test_float64_is_refused() -> None:
    q = torch.randn(1, 4, 2, 8, dtype=torch.float64)
    with pytest.raises(TypeError):
        attention(q, q, q)
