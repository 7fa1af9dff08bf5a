"""A sound from a prompt."""

from tasks.task import Block, Task

TASK = Task(
    "text_to_audio",
    inputs=(Block("text"),),
    outputs=(Block("audio"),),
    token="<task_audio>",
    share=0.10,
    summary="a sound from a prompt",
)
