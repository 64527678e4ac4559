import pytest
import torch


@pytest.fixture
def lora():
    import lora

    return lora


def test_adapters_change_nothing_before_they_are_trained(lora) -> None:
    torch.manual_seed(0)
    layer, x = lora.LoraLinear(5, 7), torch.randn(3, 2, 5)
    assert torch.equal(layer(x), layer.plain(x))
    layer.lora_B.data.normal_()
    merged = layer.plain.weight.T + layer.lora_A @ layer.lora_B
    torch.testing.assert_close(layer(x), x @ merged + layer.plain.bias)


def test_attention_looks_back_only(lora) -> None:
    torch.manual_seed(0)
    network, tokens = lora.Transformer().eval(), torch.arange(lora.LENGTH)[None] % lora.TOKENS
    changed = tokens.clone()
    changed[0, -1] = (changed[0, -1] + 1) % lora.TOKENS
    with torch.no_grad():
        before, after = network(tokens), network(changed)
    torch.testing.assert_close(before[:, :-1], after[:, :-1])
    assert not torch.allclose(before[:, -1], after[:, -1])


@pytest.mark.examples
@pytest.mark.timeout(600)
def test_the_adapters_learn_what_no_participant_has_seen_alone(lora, monkeypatch, capsys) -> None:
    monkeypatch.setattr("sys.argv", ["lora.py"])
    lora.main()
    out = capsys.readouterr().out
    accuracies = [float(line.split()[-1].rstrip("%")) for line in out.splitlines() if line.startswith("version")]
    assert len(accuracies) == lora.ROUNDS + 1
    assert accuracies[0] < 20
    # A third of the alphabet is what one participant knows.
    assert accuracies[-1] > 60
    size, delta = (int(word.replace(",", "")) for word in out.splitlines()[0].split() if word[0].isdigit())
    assert delta < size / 4
