"""Takes part in a training in which this client is registered, until it ends. The data never leaves this machine."""

import logging

import torch
from network import load_data, make_network
from torch.nn.functional import cross_entropy

import fedround_client as fr

network = make_network()
inputs, labels = load_data()
held_out = 100  # examples for the evaluation, which the training does not see


def train(model, round):
    network.load_state_dict(model)
    network.train()
    optimizer = torch.optim.SGD(network.parameters(), lr=0.3)
    for batch in torch.randperm(len(inputs) - held_out).split(10):
        loss = cross_entropy(network(inputs[held_out + batch]), labels[held_out + batch])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return network.state_dict(), len(inputs) - held_out  # the update, and the number of examples behind it


def evaluate(model, round):
    network.load_state_dict(model)
    network.eval()
    with torch.no_grad():
        right = network(inputs[:held_out]).argmax(dim=1) == labels[:held_out]
    return {"accuracy": right.float().mean().item()}, held_out


logging.basicConfig(level=logging.INFO, format="%(asctime)s  %(message)s", datefmt="%H:%M:%S")
with fr.connect() as client:  # reads FEDROUND_SERVER and FEDROUND_TOKEN
    client.participate(train, evaluate, framework="torch")
