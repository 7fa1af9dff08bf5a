"""A sound for a silent video."""

from tasks.task import Block, Task

TASK = Task(
    "video_to_audio",
    inputs=(Block("video"),),
    outputs=(Block("audio"),),
    token="<task_audio>",
    share=0.30,
    summary="sound for a silent video",
)
