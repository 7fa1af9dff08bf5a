"""Video and sound from nothing but a seed: what guidance pushes away from, learned by dropping prompts."""

from tasks.task import Block, Task

TASK = Task(
    "unconditional",
    inputs=(),
    outputs=(Block("video"), Block("audio", optional=True)),
    token="<task_video>",
    summary="video and sound from nothing but a seed",
)
