"""The preset dictionary of an artifact's header: deflate refers to it, so that a config costs what it differs in.

Part of the file format: another dictionary reads no file of this one. A change takes a new artifact.VERSION.
"""

DICTIONARY = (
    b'"lenet_300_100","lenet5_caffe","tutorial","small","base","large","mnist","digits","idx","tsv","hub","rte","mrpc"'
    b',"cola","stsb","qnli","mnli","magnitude","movement","baseline","sws","linear","cosine","bfloat16",{"config":{"da'
    b'ta":{"bad_rows":"error","buckets":null,"builtin_eval_size":1000,"builtin_seed":0,"builtin_train_size":8000,"cach'
    b'e_dir":"","dir":"","holdout":0,"hub_name":"nyu-mll/glue","max_len":128,"max_train_examples":0,"source":"builtin"'
    b',"task":"sst2","tokenizer":""},"distill":{"attention_weight":0.0,"checkpoint":"best","hidden_weight":0.0,"teache'
    b'r":"","temperature":2.0,"weight":0.5},"model":{"activation":"gelu","d_ff":512,"d_model":256,"dropout":0.1,"dtype'
    b'":"float32","init_checkpoint":"best","init_from":"","layer_ffn":null,"layer_heads":null,"layer_norm_eps":1e-12,"'
    b'max_positions":512,"name":"bert","num_heads":4,"num_layers":2,"size":"tiny","type_vocab_size":2,"vocab_size":nul'
    b'l},"movement":{"frequency":100,"penalty":1.0,"score_learning_rate":0.01,"tau":0.1,"threshold":"hard"},"pretrain"'
    b':{"epochs":0,"learning_rate":0.001},"pruning":{"end_epoch":23,"end_sparsity":1.0,"method":"spt","schedule":"step'
    b'","scope":"local","sparsity_steps":[0.1,0.25,0.5,0.7,0.75,0.8,0.84,0.88,0.9,0.92,0.93,0.94,0.95,0.96,0.97,0.975,'
    b'0.98,0.985,0.99,0.995],"start_epoch":4,"start_sparsity":0.0,"structure":"unstructured"},"report":{"mlflow_uri":"'
    b'","project":"prune_jax","sinks":["tensorboard"]},"spt":{"absolute":false,"antithetic":false,"candidates":"unifor'
    b'm","center":true,"chunk":null,"control_variate":false,"credit":"weight","epsilon":0.01,"explorations":1,"explore'
    b'_per_layer":false,"inside":"magnitude","reward_alpha":0.125},"sws":{"alpha":250.0,"beta":0.1,"components":16,"de'
    b'viation":0.25,"embeddings":false,"gammas_learning_rate":0.003,"learn_pi0":false,"mean_range":0.6,"means_learning'
    b'_rate":0.0001,"merge_kl":1e-10,"pi0":0.99,"pi0_alpha":1.0,"pi0_beta":1.0,"rhos_learning_rate":0.003,"tau":0.003,'
    b'"tau_anneal":0.0,"zero_alpha":5000.0,"zero_beta":2.0},"train":{"batch_size":96,"checkpoint_every":0,"clip_norm":'
    b'1.0,"epochs":25,"eval_batch_size":256,"learning_rate":2e-05,"lr_schedule":"constant","seed":0,"warmup_fraction":'
    b'0.06,"weight_decay":0.01}},"gated":[1,3,5,7,9],"params":{"embedding_norm":{"bias":[256],"scale":[256]},"layer_0"'
    b':{"attention_norm":{"bias":[256],"scale":[256]},"attention_output":{"bias":[256],"kernel":[256,256]},"ffn_hidden'
    b'":{"bias":[512],"kernel":[256,512]},"ffn_norm":{"bias":[256],"scale":[256]},"ffn_output":{"bias":[256],"kernel":'
    b'[512,256]},"key":{"bias":[256],"kernel":[256,256]},"query":{"bias":[256],"kernel":[256,256]},"value":{"bias":[25'
    b'6],"kernel":[256,256]}},"pooler":{"bias":[256],"kernel":[256,256]},"position_embedding":{"embedding":[512,256]},'
    b'"regressor":{"bias":[1],"kernel":[256,1]},"token_embedding":{"embedding":[30522,256]},"type_embedding":{"embeddi'
    b'ng":[2,256]}}}"classifier":{"bias":[10],"kernel":[500,10]},"conv_1":{"bias":[20],"kernel":[5,5,1,20]},"conv_2":{'
    b'"bias":[50],"kernel":[5,5,20,50]},"dense_1":{"bias":[300],"kernel":[784,300]},"dense_2":{"bias":[100],"kernel":['
    b'300,100]}}}'
)  # fmt: skip
