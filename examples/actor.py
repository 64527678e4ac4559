"""Creates a training of a linear model, starts it, and waits for the result."""

import numpy as np

import fedround_client as fr

model = {"weight": np.zeros(3, np.float32), "bias": np.zeros(1, np.float32)}

with fr.connect() as client:  # reads FEDROUND_SERVER and FEDROUND_TOKEN
    participants = [user.user_id for user in client.users(role="CLIENT")]
    training = client.create_training(model, name="linear", target_num_updates=20, client_ids=participants)
    client.start_training(training.training_id)
    training = client.wait(training.training_id)
    print(client.download_model(training.model_id))
