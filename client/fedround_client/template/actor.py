"""Creates a training of all clients, starts it, waits for its end, and downloads the best version of the model."""

import logging

import torch
from network import make_network

import fedround_client as fr

logging.basicConfig(level=logging.INFO, format="%(asctime)s  %(message)s", datefmt="%H:%M:%S")
with fr.connect() as client:  # reads FEDROUND_SERVER and FEDROUND_TOKEN
    training = client.create_training(
        make_network().state_dict(),
        name="circle",
        target_num_updates=5,
        client_ids=[user.user_id for user in client.users(role="CLIENT")],
        metric_names=["accuracy"],
        selection=fr.Selection("accuracy", "MAXIMIZE"),
        deadline=600,  # seconds that a round may stay open
        max_retries=3,  # how often one that misses it is repeated; then the training fails, and says who is silent
        absent_after=60,  # seconds without a connection, after which a round goes on without a participant
    )
    client.start_training(training.training_id)
    training = client.wait(training.training_id)
    print(f"The best version is {training.best_version}, with an accuracy of {training.best_value:.3f}.")
    torch.save(client.download_model(training.model_id, tag="best", framework="torch"), "best.pt")
