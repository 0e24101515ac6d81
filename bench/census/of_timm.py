"""One or two models of each family of timm, its small sizes and its ``test_*`` variants, on small images, without weights."""

import torch

PLAIN = """
    resnet10t resnet18 seresnet18 ecaresnet26t skresnet18 resnest14d res2net50_14w_8s resnext50_32x4d resnetblur18
    regnetx_002 regnety_002 regnetz_005 densenet121 dla46_c dpn48b cspresnet50 cspnext_tiny darknet17 hrnet_w18_small
    hgnetv2_b0 vovnet39a ese_vovnet19b_slim inception_next_atto xception41 mobilenetv2_050 mobilenetv3_small_050
    mobilenetv4_conv_small_050 mobilenetv4_hybrid_medium mobileone_s0 mobilevit_xxs mobilevitv2_050 mnasnet_small
    efficientnet_lite0 efficientnet_b0 efficientnetv2_rw_t mixnet_s tinynet_e hardcorenas_a ghostnet_050
    ghostnetv2_100 repghostnet_050 lcnet_035 lcnetv2_base rexnet_100 rexnetr_200 selecsls42b legacy_seresnet18
    lambda_resnet26t gcresnext26ts nf_regnet_b0 resnetv2_18 tresnet_m repvgg_a0 gernet_s convnext_atto convnextv2_atto
    convmixer_768_32 crossvit_tiny_240 davit_tiny edgenext_xx_small efficientvim_m1 efficientvit_b0 efficientvit_m0
    fasternet_t0 fastvit_t8 focalnet_tiny_srf sam2_hiera_tiny iformer_t lowformer_b0 mambaout_femto poolformer_s12
    caformer_s18 convformer_s18 mvitv2_tiny nextvit_small pvt_v2_b0 rdnet_tiny repvit_m0_9 sequencer2d_s shvit_s1
    starnet_s050 swiftformer_xs tiny_vit_5m_224 twins_pcpvt_small twins_svt_small xcit_nano_12_p16_224 cpubone_nano
    test_byobnet test_convnext test_convnext2 test_convnext3 test_efficientnet test_efficientnet_evos
    test_efficientnet_gn test_efficientnet_ln test_mambaout test_nfnet test_resnet test_vit test_vit2
"""

# These are built for a size of images.
SIZED = """
    sebotnet33ts_256 botnet26t_256 mixer_s32_224 resmlp_12_224 gmlp_ti16_224 gmixer_12_224 vit_tiny_patch16_224
    deit_tiny_distilled_patch16_224 deit3_small_patch16_224 eva02_tiny_patch14_224 vit_relpos_small_patch16_224
    cait_xxs24_224 coat_tiny coatnet_nano_rw_224 convit_tiny efficientformerv2_s0 gcvit_xxtiny hiera_tiny_224
    levit_128s maxvit_nano_rw_256 nest_tiny pit_ti_224 tnt_s_legacy_patch16_224 visformer_tiny vitamin_small_224
    volo_d1_224 test_coatnet test_maxvit test_vit3 test_vit_relpos
"""

MODELS = {  # name -> (size of the images, arguments)
    **{name: (64, {}) for name in PLAIN.split()},
    **{name: (64, {"img_size": 64}) for name in SIZED.split()},
    "vgg11_bn": (32, {}),
    "inception_v3": (96, {}),
    "halonet26t": (256, {}),
    "beit_base_patch16_224": (64, {"img_size": 64, "embed_dim": 96, "depth": 4, "num_heads": 4}),
    "vit_small_resnet26d_224": (64, {"img_size": 64, "embed_dim": 96, "depth": 4, "num_heads": 4}),
    "samvit_base_patch16_224": (64, {"embed_dim": 96, "depth": 4, "num_heads": 4, "global_attn_indexes": [1, 3]}),
    "efficientformer_l1": (224, {}),
    "swin_tiny_patch4_window7_224": (64, {"img_size": 64, "embed_dim": 48, "depths": [2, 2, 2, 2]}),
    "swinv2_tiny_window8_256": (64, {"img_size": 64, "embed_dim": 48, "depths": [2, 2, 2, 2]}),
    "swinv2_cr_tiny_ns_224": (64, {"img_size": 64, "embed_dim": 48, "depths": [2, 2, 2, 2]}),
    "naflexvit_base_patch16_gap": (64, {"embed_dim": 96, "depth": 4, "num_heads": 4}),
}


def make(name):
    import timm

    size, arguments = MODELS[name]
    model = timm.create_model(name, pretrained=False, num_classes=10, **arguments)
    return model, torch.randn(2, 3, size, size)
