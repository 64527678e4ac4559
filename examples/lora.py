"""Federated fine-tuning of the LoRA adapters of a small transformer.

A transformer has learned that each token is followed by the next one of its alphabet. Three participants fine-tune it
for another alphabet, of which each has seen a third. They train and send low-rank adapters only (LoRA, Hu et al., ICLR
2022): the weights of the transformer are on the server once, and each participant downloads them once.

The first factor of each adapter is random and stays as it is, so that the average of the adapters is the average of
what they do (FFA-LoRA, Sun et al., ICLR 2024).

Run it with `python examples/lora.py`; it takes a minute.
"""

import argparse
import threading
from collections.abc import Callable

import torch
from local_server import create_users, local_server
from torch import Tensor, nn

import fedround_client as fr

PARTICIPANTS, ROUNDS = 3, 12
TOKENS, WIDTH, LAYERS, HEADS, LENGTH = 24, 48, 2, 4, 12
PRETRAINING_STEPS, LOCAL_STEPS, BATCH = 300, 20, 32
RANK = 8
TRAINABLE = ["*.lora_B"]

Rule = Tensor
"""For each token, which one follows."""


class LoraLinear(nn.Module):
    """A linear layer with an adapter: x W + b + x A B, where A and B have the rank of the adapter."""

    def __init__(self, features_in: int, features_out: int) -> None:
        super().__init__()
        self.plain = nn.Linear(features_in, features_out)
        self.lora_A = nn.Parameter(torch.randn(features_in, RANK) / features_in**0.5)
        self.lora_B = nn.Parameter(torch.zeros(RANK, features_out))

    def forward(self, x: Tensor) -> Tensor:
        """Maps shape (..., features_in) to (..., features_out)."""
        output: Tensor = self.plain(x) + x @ self.lora_A @ self.lora_B
        return output


class Block(nn.Module):
    """A layer of the transformer: causal attention, then two linear layers."""

    def __init__(self) -> None:
        super().__init__()
        self.norms = nn.ModuleList([nn.LayerNorm(WIDTH), nn.LayerNorm(WIDTH)])
        self.queries_keys_values = LoraLinear(WIDTH, 3 * WIDTH)
        self.merge = LoraLinear(WIDTH, WIDTH)
        self.widen = LoraLinear(WIDTH, 4 * WIDTH)
        self.narrow = LoraLinear(4 * WIDTH, WIDTH)

    def forward(self, x: Tensor) -> Tensor:
        """Maps shape (sequences, positions, WIDTH) to the same."""
        split = self.queries_keys_values(self.norms[0](x)).unflatten(-1, (3, HEADS, -1)).permute(2, 0, 3, 1, 4)
        attended = nn.functional.scaled_dot_product_attention(*split, is_causal=True)
        x = x + self.merge(attended.transpose(1, 2).flatten(2))
        output: Tensor = x + self.narrow(nn.functional.gelu(self.widen(self.norms[1](x))))
        return output


class Transformer(nn.Module):
    """Predicts the next token at each position."""

    def __init__(self) -> None:
        super().__init__()
        self.tokens = nn.Embedding(TOKENS, WIDTH)
        self.positions = nn.Parameter(torch.randn(LENGTH, WIDTH) / 50)
        self.blocks = nn.Sequential(*(Block() for _ in range(LAYERS)))
        self.head = nn.Sequential(nn.LayerNorm(WIDTH), nn.Linear(WIDTH, TOKENS))

    def forward(self, x: Tensor) -> Tensor:
        """Returns logits of shape (sequences, positions, TOKENS) for tokens of shape (sequences, positions)."""
        output: Tensor = self.head(self.blocks(self.tokens(x) + self.positions[: x.shape[1]]))
        return output


def loss_of(network: nn.Module, rule: Rule, known: Tensor, generator: torch.Generator) -> tuple[Tensor, float]:
    """Returns the loss of a batch of random known tokens and what follows them, and the accuracy."""
    chosen = known[torch.randint(len(known), (BATCH, LENGTH), generator=generator)]
    logits, following = network(chosen), rule[chosen]
    accuracy = (logits.argmax(-1) == following).float().mean().item()
    return nn.functional.cross_entropy(logits.flatten(0, 1), following.flatten()), accuracy


def fit(network: nn.Module, parameters: list[nn.Parameter], steps: int, loss: Callable[[], Tensor]) -> None:
    """Trains some parameters of a network."""
    optimizer = torch.optim.Adam(parameters, lr=3e-3)
    for _ in range(steps):
        optimizer.zero_grad()
        loss().backward()
        optimizer.step()


def pretrained(generator: torch.Generator) -> Transformer:
    """Returns a transformer that knows which token follows in the first alphabet."""
    network = Transformer()
    rule, tokens = (torch.arange(TOKENS) + 1) % TOKENS, torch.arange(TOKENS)
    weights = [parameter for name, parameter in network.named_parameters() if "lora" not in name]
    fit(network, weights, PRETRAINING_STEPS, lambda: loss_of(network, rule, tokens, generator)[0])
    return network


def trainer(
    rule: Rule, known: Tensor, seed: int
) -> Callable[[dict[str, Tensor], fr.Round], tuple[dict[str, Tensor], int]]:
    """Returns the train function of a participant."""
    generator = torch.Generator().manual_seed(seed)

    def train(model: dict[str, Tensor], round: fr.Round) -> tuple[dict[str, Tensor], int]:
        network = Transformer()
        network.load_state_dict(model)
        adapters = [parameter for name, parameter in network.named_parameters() if name.endswith("lora_B")]
        fit(network, adapters, LOCAL_STEPS, lambda: loss_of(network, rule, known, generator)[0])
        # What the training does not update stays here.
        return network.state_dict(), len(known)

    return train


def accuracy(model: dict[str, Tensor], rule: Rule) -> float:
    """Returns how often a model predicts the right token, of all tokens."""
    network = Transformer()
    network.load_state_dict(model)
    with torch.no_grad():
        return loss_of(network, rule, torch.arange(TOKENS), torch.Generator().manual_seed(1))[1]


def run(address: str, actor_token: str, ids: list[str], tokens: list[str], seed: int) -> list[float]:
    """Runs the training; returns the accuracy of each version for the second alphabet."""
    torch.manual_seed(seed)
    generator = torch.Generator().manual_seed(seed)
    rule = torch.randperm(TOKENS, generator=generator)
    network = pretrained(generator)
    with fr.connect(address, actor_token) as actor:
        training = actor.create_training(
            network.state_dict(),
            name="adapters",
            target_num_updates=ROUNDS,
            client_ids=ids,
            trainable=TRAINABLE,
            evaluation="NEVER",
        )

        def participate(token: str, number: int) -> None:
            known = torch.arange(number, TOKENS, PARTICIPANTS)
            with fr.connect(address, token) as client:
                client.participate(
                    trainer(rule, known, seed + number), training_id=training.training_id, framework="torch"
                )

        threads = [threading.Thread(target=participate, args=(token, n)) for n, token in enumerate(tokens)]
        for thread in threads:
            thread.start()
        actor.start_training(training.training_id)
        for thread in threads:
            thread.join()
        versions = sorted(actor.model_versions(training.model_id), key=lambda one: one.version)
        print(f"the model has {versions[0].size_bytes:,} bytes, each version takes {versions[-1].delta_size_bytes:,}")
        models = (actor.download_model(training.model_id, one.version, framework="torch") for one in versions)
        return [accuracy(model, rule) for model in models]


def main() -> None:
    """Runs the example."""
    parser = argparse.ArgumentParser(description="Federated fine-tuning of the adapters of a small transformer.")
    parser.add_argument("--seed", type=int, default=0, help="seed of all random numbers")
    chosen = parser.parse_args()
    with local_server() as (address, admin_token):
        users = create_users(address, admin_token, PARTICIPANTS)
        for version, found in enumerate(run(address, *users, chosen.seed)):
            print(f"version {version:>2}: accuracy {found:.1%}", flush=True)


if __name__ == "__main__":
    main()
