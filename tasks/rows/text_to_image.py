"""One image from a prompt. Without end tokens its sequence is the beginning of a video's."""

from tasks.task import Block, Task

TASK = Task(
    "text_to_image",
    inputs=(Block("text"),),
    outputs=(Block("video", "first"),),
    token="<task_video>",
    closed=False,
    summary="one image from a prompt",
)
