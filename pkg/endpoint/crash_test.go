// SPDX-License-Identifier: Apache-2.0

package endpoint

const victimEnv = "FAIRLEAD_ENDPOINT_VICTIM"

func victim() {}
