"""Single layers of models, ours and others, with which a file of inspect's corpus is made: name, outputs, inputs."""

OTHERS = {
    "Wan": ("diffusion_model.blocks.0.self_attn.q", 1536, 1536), "Wan, kohya": ("lora_unet_blocks_0_ffn_0", 8960, 1536),
    "Wan, diffusers": ("transformer.blocks.0.attn1.to_q", 1536, 1536),
    "HunyuanVideo": ("transformer.double_blocks.0.img_attn_qkv", 9216, 3072),
    "HunyuanVideo, musubi": ("lora_unet_double_blocks_0_img_mlp_fc1", 12288, 3072),
    "Chroma": ("lora_unet_distilled_guidance_layer_layers_0_in_layer", 5120, 5120),
    "Cosmos-Predict2 14B": ("diffusion_model.blocks.35.self_attn.q_proj", 5120, 5120),
    "Stable Cascade": ("lora_prior_unet_down_blocks_0_2_attention_attn_to_q", 2048, 2048),
    "Stable Cascade, text encoder": ("lora_prior_te_text_model_encoder_layers_0_self_attn_q_proj", 1280, 1280),
    "PixArt": ("transformer.transformer_blocks.0.attn1.to_q", 1152, 1152),
    "AuraFlow": ("transformer.joint_transformer_blocks.0.attn.to_q", 3072, 3072),
    "Lumina 2": ("transformer.layers.0.attn.to_q", 2304, 2304),
    "Lumina 2, original": ("diffusion_model.layers.0.attention.qkv", 3840, 2304),
    "LTX-Video": ("diffusion_model.transformer_blocks.0.attn1.to_q", 2048, 2048),
    "Cosmos": ("diffusion_model.blocks.block0.blocks.0.block.attn.to_q.0", 4096, 4096),
    "HiDream": ("diffusion_model.double_stream_blocks.0.block.attn1.to_q", 2560, 2560),
    "nobody knows": ("diffusion_model.tower.0.mixer", 64, 64),
}
"""A layer of each model that is not ours, and its size."""

LATER = {
    "linear1 alone": ("diffusion_model.single_blocks.0.linear1", 36864, 4096),
    "qkv alone": ("diffusion_model.double_blocks.0.img_attn.qkv", 12288, 4096),
    "diffusers, one layer": ("transformer.single_transformer_blocks.0.attn.to_qkv_mlp_proj", 36864, 4096),
}
"""The same of FLUX.2 Klein 9B."""
QWEN = {
    "feed-forward": ("transformer.transformer_blocks.0.img_mlp.net.0.proj", 12288, 3072),
    "modulation": ("lora_unet_transformer_blocks_3_txt_mod_1", 18432, 3072),
    "a late block": ("transformer_blocks.59.attn.to_q", 3072, 3072),
}
"""And of Qwen-Image."""
QWEN21 = {
    "gate, ComfyUI's": ("diffusion_model.transformer_blocks.0.img_mlp.gate_up", 24576, 4096),
    "gate, diffusers'": ("transformer.transformer_blocks.3.img_mlp.gate_layer", 12288, 4096),
    "a later block": ("transformer_blocks.20.attn.to_q", 4096, 4096),
}
"""And of Qwen-Image 2.1."""
ANIMA = {
    "attention": ("lora_unet_blocks_0_self_attn_q_proj", 2048, 2048),
    "feed-forward, ai-toolkit": ("diffusion_model.blocks.27.mlp.layer1", 8192, 2048),
    "conditioner": ("lora_unet_llm_adapter_blocks_0_cross_attn_k_proj", 1024, 1024),
    "attention, diffusers'": ("transformer.transformer_blocks.0.attn2.to_k", 2048, 1024),
    "modulation": ("transformer.transformer_blocks.0.norm2.linear_1", 256, 2048),
}
"""And of Anima."""
KREA = {
    "attention": ("diffusion_model.blocks.0.attn.wq", 6144, 6144),
    "feed-forward": ("diffusion_model.blocks.0.mlp.gate", 16384, 6144),
    "gate": ("lora_unet_blocks_27_attn_gate", 6144, 6144),
    "diffusers": ("transformer.transformer_blocks.0.attn.to_gate", 6144, 6144),
    "text fusion": ("base_model.model.txtfusion.layerwise_blocks.0.mlp.up", 6912, 2560),
}
"""And of Krea 2."""
