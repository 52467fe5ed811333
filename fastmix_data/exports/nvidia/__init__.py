"""The formats of NVIDIA's trainers: Megatron's token files, which NeMo reads too, and Energon's folders of tars."""
