"""The parts of SipMask-VIS beside Detectron2's FCOS."""
