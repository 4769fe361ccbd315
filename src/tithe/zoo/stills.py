"""LLaVA-OneVision's processor without its video half, which transformers builds only where torchvision is installed.

Clips go through `tithe.frames`, which needs the image half alone.
"""

from __future__ import annotations

from typing import Any

from transformers import LlavaOnevisionProcessor


class StillsProcessor(LlavaOnevisionProcessor):
    """Text and pictures in, the same inputs out; ``videos`` are not taken."""

    # Spelled out, since transformers reads from the signature what belongs into the saved file.
    def __init__(
        self,
        image_processor: Any = None,
        tokenizer: Any = None,
        num_image_tokens: int | None = None,
        vision_feature_select_strategy: str | None = None,
        chat_template: str | None = None,
        image_token: str = "<image>",
        video_token: str = "<video>",
        vision_aspect_ratio: str = "anyres_max_9",
        **options: Any,
    ) -> None:
        super().__init__(
            image_processor,
            tokenizer,
            num_image_tokens=num_image_tokens,
            vision_feature_select_strategy=vision_feature_select_strategy,
            chat_template=chat_template,
            image_token=image_token,
            video_token=video_token,
            vision_aspect_ratio=vision_aspect_ratio,
            **options,
        )
