"""What the engine must know of a model family: one file each, or none where structure says all."""

from .base import Adapter, adapter_for, register, verified
from .gemma4 import Gemma4Adapter
from .generic import GenericAdapter
from .glm4v import Glm4vAdapter, Glm4vMoeAdapter, Glm46VAdapter, GlmOcrAdapter
from .llava import LlavaAdapter
from .llava_next import Granite4VisionAdapter, LlavaNextAdapter
from .llava_video import LlavaNextVideoAdapter, LlavaOnevisionAdapter, VideoLlavaAdapter
from .perception_lm import PerceptionLMAdapter
from .pixtral import LightOnOcrAdapter, Mistral3Adapter
from .qwen2_vl import Qwen2_5_VLAdapter, Qwen2VLAdapter, Qwen3VLAdapter
from .vipllava import VipLlavaAdapter

__all__ = [
    "Adapter",
    "Gemma4Adapter",
    "GenericAdapter",
    "Glm4vAdapter",
    "Glm4vMoeAdapter",
    "Glm46VAdapter",
    "GlmOcrAdapter",
    "Granite4VisionAdapter",
    "LightOnOcrAdapter",
    "LlavaAdapter",
    "LlavaNextAdapter",
    "LlavaNextVideoAdapter",
    "LlavaOnevisionAdapter",
    "Mistral3Adapter",
    "PerceptionLMAdapter",
    "Qwen2VLAdapter",
    "Qwen2_5_VLAdapter",
    "Qwen3VLAdapter",
    "VideoLlavaAdapter",
    "VipLlavaAdapter",
    "adapter_for",
    "register",
    "verified",
]
