# An editor whose person is slow: somebody else stops the VM meanwhile.
lightbyte stop --no-wait hello
sed -i 's/running: true/running: true # so it was/; s/wait/"wait"/; s/^spec:/labels: {a: b}\nspec:/' "$1"
