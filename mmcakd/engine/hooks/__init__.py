from .seed_by_epoch_hook import SeedByEpochHook

__all__ = ['SeedByEpochHook']
