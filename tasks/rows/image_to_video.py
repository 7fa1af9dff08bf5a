"""The rest of a video, with sound, from its first frame."""

from tasks.task import Block, Task

TASK = Task(
    "image_to_video",
    inputs=(Block("text", optional=True), Block("video", "first")),
    outputs=(Block("video", "rest"), Block("audio", optional=True)),
    token="<task_video>",
    share=0.06,
    summary="video and sound that begin with an image",
)
