"""The future of a video from its past, with sound."""

from tasks.task import Block, Task

TASK = Task(
    "frame_prediction",
    inputs=(Block("text", optional=True), Block("video", "context")),
    outputs=(Block("video", "future"), Block("audio", optional=True)),
    token="<task_video>",
    share=0.06,
    summary="the future of a video, with sound",
)
