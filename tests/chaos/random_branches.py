"""What a random training has on the side: shadow aggregations, and how many updates it keeps."""

import random

from chaos.random_stages import RULES, draw_stages
from fedround.v1 import training_pb2

TOO_FEW = 9
"""More updates than any round has: a shadow that needs so many never has an aggregate."""

WITHOUT_SHADOWS = ("fed_dc", "scaffold")
"""Rules whose updates other aggregations can't take."""


def draw_branches(spec: training_pb2.TrainingSpec, draw: random.Random) -> None:
    """Draws the rounds whose updates are kept, and shadow aggregations, where there may be some."""
    aggregation = spec.aggregation
    if draw.random() < 0.5:
        spec.keep_update_rounds = draw.randint(0, 2)
    if aggregation.WhichOneof("algorithm") in WITHOUT_SHADOWS:
        del aggregation.shadow[:]
        return
    if aggregation.HasField("differential_privacy") or aggregation.shadow or draw.random() < 0.5:
        return
    for _ in range(draw.randint(1, 2)):
        shadow = aggregation.shadow.add()
        if draw.random() < 0.2:
            shadow.krum.f = TOO_FEW
        else:
            draw_stages(shadow, draw, RULES)
