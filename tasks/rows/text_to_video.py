"""Video and sound from a prompt."""

from tasks.task import Block, Task

TASK = Task(
    "text_to_video",
    inputs=(Block("text"),),
    outputs=(Block("video"), Block("audio", optional=True)),
    token="<task_video>",
    share=0.30,
    summary="video and sound from a prompt",
)
