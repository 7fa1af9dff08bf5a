"""A video that goes with a sound."""

from tasks.task import Block, Task

TASK = Task(
    "audio_to_video",
    inputs=(Block("text", optional=True), Block("audio")),
    outputs=(Block("video"),),
    token="<task_video>",
    share=0.08,
    summary="video for a sound",
)
