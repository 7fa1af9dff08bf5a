"""The future of picture and sound from their past (VideoPoet section 5.2): what makes videos of any length."""

from tasks.task import Block, Task

TASK = Task(
    "audio_video_continuation",
    inputs=(Block("text", optional=True), Block("video", "context"), Block("audio", "context", named="video")),
    outputs=(Block("video", "future"), Block("audio", "future")),
    token="<task_video>",
    share=0.14,
    summary="the future of a video and of its sound",
)
